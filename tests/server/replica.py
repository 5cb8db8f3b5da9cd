"""Replicas of the server in one process, whose upstream, clock and database a test has in its hand."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from enum import Enum, auto
from typing import Any, Self
from uuid import UUID, uuid4

from db.bell import Bell, BellLimits
from db.database import Connection, Database, DatabaseUnavailable, Record
from providers.base import ChatRequest, Finished, ProviderEvent
from providers.errors import ProviderError
from providers.registry import Registration, Registry
from providers.reply import ReplyLimits, complete_reply
from providers.router import Router
from providers.scripted import Scripted
from server.chat import ChatEngine
from server.events import LoggedEvent, Terminal
from server.leases import Leases
from server.stream_log import LogTiming, StreamLog

LEASE_SECONDS = 3600.0  # passes only where the test says so
_QUICK = LogTiming(flush_seconds=0.002, lease_seconds=LEASE_SECONDS, poll_seconds=0.05, retry_seconds=0.005)
_BELL = BellLimits(first_delay_seconds=0.005, longest_delay_seconds=0.02)
_PATIENT = ReplyLimits(first_token_seconds=LEASE_SECONDS, silence_seconds=LEASE_SECONDS)


class Upstream:
    """Replies, by the name of the model that gives them, as the test says them."""

    def __init__(self) -> None:
        self._said: defaultdict[str, asyncio.Queue[ProviderEvent | ProviderError]]
        self._said = defaultdict(asyncio.Queue)

    def say(self, model: str, event: ProviderEvent | ProviderError) -> None:
        self._said[model].put_nowait(event)

    def forget(self, model: str) -> None:
        self._said.pop(model, None)

    async def reply(self, model: str) -> AsyncGenerator[ProviderEvent, None]:
        said = self._said[model]
        while True:
            event = await said.get()
            if isinstance(event, ProviderError):
                raise event
            yield event
            if isinstance(event, Finished):
                return


class _Told(Scripted):
    """A provider whose models' names are scripts that nobody plays: they say what the upstream says."""

    def __init__(self, upstream: Upstream) -> None:
        super().__init__(_PATIENT)
        self._upstream = upstream

    def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        return complete_reply(self._upstream.reply(request.model), _PATIENT, self.name)


class Clock:
    """What the processes know of the time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class LinkState(Enum):
    UP = auto()
    AWAY = auto()  # nothing reaches Postgres
    DEAF = auto()  # everything is done there, and nobody here learns of it


class Link(Database):
    """One replica's way to the database."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._pool, database._limits)
        self.state = LinkState.UP

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        with self._crossed():
            async with super().transaction() as connection:
                yield connection

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        with self._crossed():
            return await super().fetch(sql, *args)

    async def fetchrow(self, sql: str, *args: object) -> Record | None:
        with self._crossed():
            return await super().fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: object) -> Any:
        with self._crossed():
            return await super().fetchval(sql, *args)

    async def execute(self, sql: str, *args: object) -> str:
        with self._crossed():
            return await super().execute(sql, *args)

    @contextmanager
    def _crossed(self) -> Iterator[None]:
        if self.state is LinkState.AWAY:
            raise DatabaseUnavailable("it is away")
        yield
        if self.state is LinkState.DEAF:
            raise DatabaseUnavailable("its answer was lost")


class Replica:
    """One process, as far as the database and its clients can tell: it can be drained, or die."""

    def __init__(self, url: str, database: Database, upstream: Upstream, clock: Clock) -> None:
        self.link = Link(database)
        self._url = url
        self._upstream = upstream
        self._clock = clock
        self._is_up = asyncio.Event()
        self._is_leaving = asyncio.Event()
        self.log: StreamLog
        self.engine: ChatEngine
        self.leases: Leases
        self._running: asyncio.Task[None]

    async def start(self) -> Self:
        self._running = asyncio.create_task(self._run())
        await self._is_up.wait()
        return self

    async def drain(self) -> None:
        """The process is asked to end, and has no time for its replies."""
        self._is_leaving.set()
        await self._running

    async def die(self) -> None:
        """The process ends, and nothing more of it reaches the database."""
        self.link.state = LinkState.AWAY
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    @property
    def writes(self) -> bool:
        return bool(self.log._writers)

    async def _run(self) -> None:
        registry = Registry([Registration(_Told(self._upstream), "scripted")])
        async with Bell.listening(self._url, _BELL) as bell:
            self.log = StreamLog(self.link, bell, uuid4(), _QUICK)
            self.leases = Leases(  # the log has its own, which live by a clock that stands still here
                self.link,
                bell,
                self.log.owner,
                lease_seconds=LEASE_SECONDS,
                running=self.log._writers.keys,
                stop=self.log._stop,
                clock=self._clock,
            )
            self.engine = ChatEngine(self.link, Router(registry, default_provider="scripted"), self.log)
            async with self.log.running(), self.engine.running(grace_seconds=0):
                self._is_up.set()
                await self._is_leaving.wait()


class Client:
    """Reads one generation through any number of connections, each behind what it has seen. One that is slow
    takes an event only when it is told to; one without a generation never connects."""

    def __init__(self, generation_id: UUID | None, start: int, *, is_slow: bool) -> None:
        self.generation_id = generation_id
        self.start = start
        self.seen: list[LoggedEvent] = []
        self.is_slow = is_slow
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._replica: Replica | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def has_ended(self) -> bool:
        return bool(self.seen) and isinstance(self.seen[-1].event, Terminal)

    @property
    def is_connected(self) -> bool:
        return self._reading is not None

    def is_at(self, replica: Replica) -> bool:
        return self._replica is replica

    def connect(self, replica: Replica) -> None:
        after = self.seen[-1].seq if self.seen else self.start
        assert self.generation_id is not None
        self._replica = replica
        self._reading = asyncio.create_task(self._read(replica, self.generation_id, after))

    async def drop(self) -> None:
        if self._reading:
            self._reading.cancel()
            await asyncio.wait({self._reading})
            if not self._reading.cancelled():
                self._reading.result()
        self._reading = self._replica = None

    def take(self) -> None:
        self._may_read.set()

    async def rest(self) -> None:
        """Until the generation's end. Raises what the reading raised."""
        self.is_slow = False
        self._may_read.set()
        if self._reading:
            await self._reading

    async def _read(self, replica: Replica, generation_id: UUID, after: int) -> None:
        async with aclosing(replica.log.read(generation_id, after)) as events:
            async for event in events:
                self.seen.append(event)
                if self.is_slow:
                    self._may_read.clear()
                await self._may_read.wait()


numbers = itertools.count(1)  # of models, keys and viewers
