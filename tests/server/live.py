"""Any ASGI application behind a real uvicorn, in this loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    """Leaves the signals to pytest, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@asynccontextmanager
async def live(app: ASGIApp, *, send_buffer: int | None = None) -> AsyncIterator[int]:
    """The port of 127.0.0.1 that ``app`` answers on, without its lifespan. ``send_buffer`` is how many bytes
    the kernel takes for a client that does not read; it goes up to megabytes by itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = _Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server._serve([listener]))
        try:
            await server.listening.wait()
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            await serving
