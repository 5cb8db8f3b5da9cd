"""A TCP proxy on the loopback between Parley and a real server, that sees and breaks what passes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Self

from tests.providers.replay import reset


class FaultProxy:
    """``client_closed_at`` has the loop's time of each closing by the client. Faults apply to every
    connection that is open, and to the bytes that come from then on."""

    def __init__(self, host: str, port: int) -> None:
        self.connections = 0
        self.client_closed_at: list[float] = []
        self.bytes_to_client = 0
        self._target = (host, port)
        self._port = 0
        self._alter: Callable[[bytes], bytes] | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._changed = asyncio.Condition()
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def stall(self) -> None:
        """Hold back what the server sends, the connections stay open."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def garble(self, alter: Callable[[bytes], bytes] = lambda data: data.replace(b"{", b"<")) -> None:
        """Change what the server sends; the default spoils JSON and leaves HTTP whole."""
        self._alter = alter

    def cut(self, *, abruptly: bool = True) -> None:
        """End every connection, with a TCP RST or with a FIN."""
        for writer in self._clients:
            if writer.is_closing():
                continue  # already ended; its task has not come round to it yet
            if abruptly:
                reset(writer)
            else:
                writer.close()

    async def wait_for(self, condition: Callable[["FaultProxy"], bool], *, timeout_seconds: float) -> None:
        """Until the proxy has seen it, e.g. ``lambda proxy: proxy.bytes_to_client > 1000``."""
        async with asyncio.timeout(timeout_seconds), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        listener = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listener.close()
            running = list(self._tasks)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            above_reader, above = await asyncio.open_connection(*self._target)
        except OSError:
            reset(writer)
            return
        self._clients.add(writer)
        down = asyncio.create_task(self._to_client(above_reader, writer))
        try:
            await self._to_server(reader, above)
            if not writer.is_closing():  # else it was us, or the server
                self.client_closed_at.append(asyncio.get_running_loop().time())
                await self._tell()
        finally:
            down.cancel()
            self._clients.discard(writer)
            above.close()
            writer.close()
            await asyncio.gather(down, return_exceptions=True)

    async def _to_server(self, reader: asyncio.StreamReader, above: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                above.write(data)
                await above.drain()

    async def _to_client(self, above: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await above.read(65536):
                await self._flowing.wait()
                writer.write(self._alter(data) if self._alter else data)
                await writer.drain()
                self.bytes_to_client += len(data)
                await self._tell()
        writer.close()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
