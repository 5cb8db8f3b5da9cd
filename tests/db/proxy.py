"""A TCP proxy on the loopback in front of the tests' Postgres, whose connections it swallows or cuts."""

import asyncio
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs, urlsplit, urlunsplit


class PostgresProxy:
    """Has its port from the start, and refuses connections until it runs. ``cuts`` says after how many bytes
    from Postgres each next connection ends; when it is used up, connections last."""

    def __init__(self, url: str) -> None:
        self.connections = 0
        self.cuts: Iterator[int] = iter(())
        self.is_swallowing = False  # what comes goes nowhere, and connections stay open
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        parts = urlsplit(url)
        where = parse_qs(parts.query)
        self._target = f"{where['host'][0]}/.s.PGSQL.{where['port'][0]}"
        login = parts.netloc.rpartition("@")[0]
        port = self._socket.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}", query=""))

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["PostgresProxy"]:
        listener = await asyncio.start_server(self._accept, sock=self._socket)
        try:
            yield self
        finally:
            listener.close()
            running = list(self._tasks)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def reached(self, connections: int) -> None:
        """Until there have been so many connections."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.connections >= connections)

    def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: StreamReader, writer: StreamWriter) -> None:
        async with self._changed:
            self.connections += 1
            self._changed.notify_all()
        above_reader, above = await asyncio.open_unix_connection(self._target)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, above))
                tasks.create_task(self._pass(above_reader, writer, next(self.cuts, None)))
        finally:
            above.close()
            writer.close()

    async def _pass(self, reader: StreamReader, writer: StreamWriter, at_most: int | None = None) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536 if at_most is None else at_most):
                if not self.is_swallowing:
                    writer.write(data)
                    await writer.drain()
                if at_most is not None:
                    at_most -= len(data)
        writer.close()
