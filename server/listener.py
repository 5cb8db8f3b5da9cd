"""The socket that clients connect to, and the server behind it, from its first request to its last."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

_CLOSE_SECONDS = 3
_FAREWELL_SECONDS = 0.25
_MESSAGE_BYTES = 16 * 1024 * 1024
_PING_SECONDS = 20.0


class ListenError(Exception):
    """The address cannot be had; says which, and what to do."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that has its address, and does not listen yet. Raises ListenError."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


class Listener(uvicorn.Server):
    """``ready`` is called once requests are accepted. When told to stop, ``drain`` is awaited first, with
    all connections still open, so that whoever watches a reply sees its end; then ``closing`` is set."""

    def __init__(
        self,
        app: ASGIApp,
        ready: Callable[[], None],
        drain: Callable[[], Awaitable[None]],
        closing: asyncio.Event,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                http="httptools",
                ws="websockets-sansio",
                ws_max_size=_MESSAGE_BYTES,
                ws_per_message_deflate=False,  # deltas are too short to gain by it
                ws_ping_interval=_PING_SECONDS,
                ws_ping_timeout=_PING_SECONDS,
                timeout_graceful_shutdown=_CLOSE_SECONDS,
            )
        )
        self._ready = ready
        self._drain = drain
        self._closing = closing

    async def listen(self, listener: socket.socket) -> None:
        """Serve until SIGINT or SIGTERM. Raises ListenError."""
        host, port = listener.getsockname()[:2]
        try:
            await self.serve([listener])
        except OSError as error:  # somebody else who had bound it too was first to listen
            raise _cannot_listen(host, port, error) from error

    async def main_loop(self) -> None:
        self._ready()
        await super().main_loop()
        await self._drain()
        if self.server_state.connections:
            await asyncio.sleep(_FAREWELL_SECONDS)  # for the last events to reach their readers
        self._closing.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's own, does not raise the signal again afterwards: who was told to stop and did has
        not failed. A second signal is the kernel's, and ends the process at once."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) == self.handle_exit:
                    signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def _cannot_listen(host: str, port: int, error: OSError) -> ListenError:
    if error.errno == errno.EADDRINUSE:
        return ListenError(f"port {port} of {host} is taken by another program; choose another with --port")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ListenError(f"cannot listen on port {port} of {host}: {reason}")
