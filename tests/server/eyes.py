"""Those who watch conversations, and what they see."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

from db import conversations, generation_log
from db.bell import Bell, Channel
from db.conversations import Conversation, ConversationChange
from db.database import Database, DatabaseUnavailable, Record
from db.generation_log import LogRow
from db.generations import Generation
from db.usage import Attempt, Usage
from server.conversation_events import (
    ConversationChanged,
    ConversationEvent,
    GenerationBegan,
    GenerationEnded,
)
from server.events import Stopped
from server.log_rows import encode, to_ending
from server.watcher import Watcher
from tests.server.begin import VIEWER, begin

OWNER = uuid4()
NEVER_SECONDS = 60.0  # longer than any test waits


class Asked(Database):
    """Knows what it is asked, and cannot be reached while ``is_away``."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._pool, database._limits)
        self.is_away = False
        self.running = 0
        self.statements: list[str] = []
        self._asked = asyncio.Event()

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        self.statements.append(sql)
        self._asked.set()
        if self.is_away:
            raise DatabaseUnavailable("it is away")
        self.running += 1
        try:
            return await super().fetch(sql, *args)
        finally:
            self.running -= 1

    async def has_been_asked(self, times: int) -> None:
        async with asyncio.timeout(10):
            while len(self.statements) < times:
                self._asked.clear()
                await self._asked.wait()


@asynccontextmanager
async def watching(
    database: Database, bell: Bell, *, poll_seconds: float = NEVER_SECONDS, patience_seconds: float = 10.0
) -> AsyncGenerator[Watcher]:
    watcher = Watcher(database, bell, poll_seconds=poll_seconds, patience_seconds=patience_seconds)
    async with watcher.running():
        yield watcher
        assert watcher._waiting == set()


async def is_connected(bell: Bell) -> None:
    await bell.wait(Channel.CONVERSATIONS, 0, at_most_seconds=10)
    assert bell.rings(Channel.CONVERSATIONS)


async def are_waiting(watcher: Watcher, number: int) -> None:
    async with asyncio.timeout(10):
        while len(watcher._waiting) != number:  # noqa: ASYNC110 - what is awaited rings no bell
            await asyncio.sleep(0)


async def are_answered(watcher: Watcher, asked: Asked) -> None:
    """Return when no look is being taken, or due."""
    async with asyncio.timeout(10):
        while watcher._is_due.is_set() or asked.running:  # noqa: ASYNC110 - nor does this
            await asyncio.sleep(0)


class Eyes:
    """One that watches a conversation; ``seen`` is all that it was told."""

    def __init__(self, events: AsyncGenerator[ConversationEvent]) -> None:
        self._events = events
        self.seen: list[ConversationEvent] = []

    async def next(self, *, within_seconds: float = 10.0) -> ConversationEvent:
        async with asyncio.timeout(within_seconds):
            self.seen.append(await anext(self._events))
        return self.seen[-1]

    async def take(self, number: int) -> list[ConversationEvent]:
        return [await self.next() for _ in range(number)]

    async def to_end(self) -> None:
        async for event in self._events:
            self.seen.append(event)

    def of(self, kind: type[ConversationEvent]) -> list[ConversationEvent]:
        return [event for event in self.seen if isinstance(event, kind)]


@asynccontextmanager
async def eyes(watcher: Watcher, conversation_id: UUID) -> AsyncGenerator[Eyes]:
    async with aclosing(await watcher.watch(VIEWER, conversation_id)) as events:
        yield Eyes(events)


async def rename(database: Database, id_: UUID, title: str) -> None:
    assert await conversations.update(database, VIEWER, id_, ConversationChange(title))


async def end(database: Database, generation: Generation) -> None:
    now = datetime.now(UTC)
    spent = Usage(3, 0, "estimated", None, 2.0)
    attempt = Attempt(1, "scripted", generation.model, now, None, now, "stopped", None, spent)
    row = LogRow(generation.id, 2, encode(Stopped()))
    assert await generation_log.finish(database, OWNER, to_ending(Stopped(), attempt, [row]))


async def begun(database: Database, conversation: Conversation, parent_id: UUID | None = None) -> Generation:
    generation, _ = await begin(
        database, OWNER, conversation_id=conversation.id, parent_id=parent_id, lease_seconds=NEVER_SECONDS
    )
    return generation


def titles(events: list[ConversationEvent]) -> list[str]:
    return [event.conversation.title for event in events if isinstance(event, ConversationChanged)]


def kinds(events: list[ConversationEvent]) -> list[str]:
    return [type(event).__name__ for event in events]


def ids(events: list[ConversationEvent]) -> list[UUID]:
    """Of the generations that began or ended."""
    found = []
    for event in events:
        match event:
            case GenerationBegan(generation=generation):
                found.append(generation.id)
            case GenerationEnded(generation_id=id_):
                found.append(id_)
    return found
