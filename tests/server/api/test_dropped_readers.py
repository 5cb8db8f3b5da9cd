"""Clients that vanish, hundreds at a time, some of which never read: their sources are closed at once."""

import asyncio
import gc
import json
import random
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast
from uuid import UUID

from starlette.requests import HTTPConnection
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from server.api import Context, graphql_app
from server.events import Delta, LoggedEvent
from server.stream_log import StreamLog
from tests.graphql_client import PROTOCOL, Socket
from tests.server.api.conftest import House
from tests.server.live import live

READERS = 500
SLOW_EVERY = 5
LONG = "x" * 200_000  # more than the buffers of a connection hold
SUBSCRIPTION = "subscription ($id: ID!) { generation(id: $id) { __typename seq ... on TextDelta { text } } }"

Now: TypeAlias = Callable[[], float]


@dataclass
class Source:
    """What one client reads from, and when."""

    log: StreamLog
    now: Now
    characters: int = 0
    dropped_at: float | None = None
    closed_at: float | None = None
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, generation_id: UUID, after: int = 0) -> AsyncGenerator[LoggedEvent]:
        try:
            async with aclosing(self.log.read(generation_id, after)) as events:
                async for event in events:
                    self.characters += len(event.event.text) if isinstance(event.event, Delta) else 0
                    self.moved.set()
                    yield event
        finally:
            self.closed_at = self.now()
            self.closed.set()


class Sources:
    """An endpoint whose every client has a source of its own, which its URL names."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._now = asyncio.get_running_loop().time
        self._all: dict[str, Source] = {}
        self.endpoint = graphql_app(self._context, asyncio.Event())

    def __getitem__(self, name: str) -> Source:
        return self._all.setdefault(name, Source(self._house.log, self._now))

    def _context(self, connection: HTTPConnection) -> Context:
        source = self[connection.query_params["reader"]]
        return replace(self._house.context(), log=cast("StreamLog", source))


@contextmanager
def no_garbage_collection() -> Iterator[list[str]]:
    """The names of the generators that nobody closed: those that were left to be collected."""
    abandoned: list[str] = []
    hooks = sys.get_asyncgen_hooks()
    gc.disable()
    sys.set_asyncgen_hooks(finalizer=lambda generator: abandoned.append(repr(generator)))
    try:
        yield abandoned
    finally:
        sys.set_asyncgen_hooks(*hooks)
        gc.enable()


def narrow(port: int) -> socket.socket:
    """A connection whose receiving end holds next to nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.setblocking(False)
    return connection


@asynccontextmanager
async def stream_reader(port: int, name: str, body: Any, reads: bool) -> AsyncGenerator[Callable[[], None]]:
    """An event stream; what makes it vanish."""
    reader, writer = await asyncio.open_connection(sock=narrow(port), limit=1024)
    content = json.dumps(body).encode()
    head = (
        f"POST /graphql?reader={name} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content)
    reading = asyncio.create_task(_read_on(reader)) if reads else None
    try:
        yield writer.transport.abort
    finally:
        writer.transport.abort()
        if reading:
            await reading


async def _read_on(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


@asynccontextmanager
async def socket_reader(port: int, name: str, body: Any, reads: bool) -> AsyncGenerator[Callable[[], None]]:
    """A WebSocket; what makes it vanish."""
    url = f"ws://127.0.0.1:{port}/graphql?reader={name}"
    options: Any = {"subprotocols": [Subprotocol(PROTOCOL)], "compression": None}
    async with connect(url, sock=narrow(port), **options) as connection:
        websocket = Socket(connection)
        await websocket.send({"type": "connection_init"})
        assert await websocket.receive() == {"type": "connection_ack"}
        if not reads:
            connection.transport.pause_reading()
        operation = await websocket.subscribe(body["query"], **body["variables"])
        reading = asyncio.create_task(operation.rest()) if reads else None
        try:
            yield websocket.drop
        finally:
            websocket.drop()
            if reading:
                await asyncio.gather(reading, return_exceptions=True)


async def test_sources_are_closed_at_once_however_their_readers_vanish(house: House) -> None:
    """Five hundred, half by event stream and half by WebSocket; each fifth never read a byte."""
    chance = random.Random(3)  # noqa: S311 - the same chances each time
    quiet = await house.send("words 2;stall")
    busy = await house.send("words 100000 every 20ms")
    long = await house.say("history", LONG)
    sources = Sources(house)
    dropping: dict[str, Callable[[], None]] = {}
    async with live(sources.endpoint, send_buffer=4096) as port, AsyncExitStack() as stack:
        with no_garbage_collection() as abandoned:
            for number in range(READERS):
                name, slow = str(number), number % SLOW_EVERY == 0
                generation = long if slow else chance.choice((quiet, busy))
                body = {"query": SUBSCRIPTION, "variables": {"id": generation["id"]}}
                reader = stream_reader if chance.random() < 0.5 else socket_reader
                dropping[name] = await stack.enter_async_context(reader(port, name, body, not slow))
            names = list(dropping)
            async with asyncio.timeout(20):
                for name in names:
                    await sources[name].moved.wait()
            open_ = [name for name in names if sources[name].closed_at is None]
            assert open_ == names, "whoever does not read holds its source open, and nobody else's"
            chance.shuffle(names)
            for name in names:
                sources[name].dropped_at = asyncio.get_running_loop().time()
                dropping[name]()
                if chance.random() < 0.1:
                    async with asyncio.timeout(5):
                        await sources[name].closed.wait()
            async with asyncio.timeout(5):
                for name in names:
                    await sources[name].closed.wait()
        assert abandoned == []
    late = [_seconds(sources[name]) for name in names]
    assert max(late) < 1, sorted(late)[-10:]


def _seconds(source: Source) -> float:
    """From the vanishing of the reader to the end of its source."""
    assert source.dropped_at is not None
    assert source.closed_at is not None
    return source.closed_at - source.dropped_at


async def test_a_client_that_never_reads_is_not_read_for_and_holds_up_nobody(house: House) -> None:
    """What is kept for it is what its connection's buffers hold, however much there is to come."""
    sources = Sources(house)
    async with live(sources.endpoint, send_buffer=4096) as port:
        for reader in (stream_reader, socket_reader):
            generation = await house.send(";".join(["history"] * 40), LONG)
            body = {"query": SUBSCRIPTION, "variables": {"id": generation["id"]}}
            idle, busy = sources[f"idle-{reader.__name__}"], sources[f"busy-{reader.__name__}"]
            async with reader(port, f"idle-{reader.__name__}", body, False) as drop:
                await idle.moved.wait()
                await house.engine.ended(UUID(generation["id"]))
                async with (
                    asyncio.timeout(20),
                    reader(port, f"busy-{reader.__name__}", body, True),
                ):
                    await busy.closed.wait()
                assert busy.characters > 40 * len(LONG)
                assert idle.characters < busy.characters / 4
                assert idle.closed_at is None
                drop()
                async with asyncio.timeout(1):
                    await idle.closed.wait()


async def test_a_reader_that_is_cancelled_as_an_event_comes_is_closed(house: House) -> None:
    """Whichever of the two is first, and by how little."""
    generation_id = UUID((await house.send("stall"))["id"])

    async def read() -> None:
        async with aclosing(house.log.read(generation_id, 1)) as events:
            async for _ in events:
                pass

    for steps in range(5):
        reading = asyncio.create_task(read())
        await house.log.has_readers(1)
        house.log._tails[generation_id].publish(())
        for _ in range(steps):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait({reading}, timeout=1)
        assert reading.cancelled(), f"{steps} steps of the loop later"
