"""What resolvers work with: the parts of the server, on behalf of one viewer."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeAlias, TypeVar
from uuid import UUID
from weakref import WeakSet

import strawberry
from graphql import OperationType
from strawberry.dataloader import DataLoader

from db import conversations, generations, usage
from db.database import Database
from db.generations import Generation
from db.usage import Attempt
from providers.registry import Registry
from providers.router import Router
from server.api.cursor import Cursor
from server.chat import ChatEngine
from server.patience import patiently
from server.readers import Readers
from server.stream_log import StreamLog
from server.watcher import Watcher


class _Record(Protocol):
    @property
    def id(self) -> UUID: ...


RecordT = TypeVar("RecordT", bound=_Record)
T = TypeVar("T")
Fetch: TypeAlias = Callable[[Database, str, Sequence[UUID]], Awaitable[Sequence[T]]]


class Loaders:
    """Lookups by id, those of one moment as one query; None for what is not there or not the viewer's.

    Nothing is kept: a subscription lives for minutes, and what it shows has changed since. A database
    that is away is waited for as long as ``patience_seconds``.
    """

    def __init__(
        self, database: Database, viewer_id: str, *, patience_seconds: float, retry_seconds: float
    ) -> None:
        self._database = database
        self._viewer_id = viewer_id
        self._patience_seconds = patience_seconds
        self._retry_seconds = retry_seconds
        self.conversation = self._by_id(conversations.get_many)
        self.message = self._by_id(conversations.messages)
        self.generation = self._by_id(generations.get_many)
        self.generation_of_message = DataLoader(self._generations_of_messages, cache=False)
        self.attempts = DataLoader(self._attempts_of_generations, cache=False)

    def _by_id(self, fetch: Fetch[RecordT]) -> DataLoader[UUID, RecordT | None]:
        async def load(ids: list[UUID]) -> list[RecordT | None]:
            found = {record.id: record for record in await self._asked(fetch, ids)}
            return [found.get(id_) for id_ in ids]

        return DataLoader(load, cache=False)

    async def _generations_of_messages(self, message_ids: list[UUID]) -> list[Generation | None]:
        rows = await self._asked(generations.of_messages, message_ids)
        found = {generation.message_id: generation for generation in rows}
        return [found.get(message_id) for message_id in message_ids]

    async def _attempts_of_generations(self, generation_ids: list[UUID]) -> list[list[Attempt]]:
        found = defaultdict(list)
        for generation_id, attempt in await self._asked(usage.attempts, generation_ids):
            found[generation_id].append(attempt)
        return [found[generation_id] for generation_id in generation_ids]

    async def _asked(self, fetch: Fetch[T], ids: Sequence[UUID]) -> Sequence[T]:
        return await patiently(
            lambda: fetch(self._database, self._viewer_id, ids),
            patience_seconds=self._patience_seconds,
            retry_seconds=self._retry_seconds,
        )


@dataclass(frozen=True)
class Context:
    """One per HTTP request and per WebSocket. Everything read or written is ``viewer_id``'s. ``cursor`` is
    there for an event stream, which runs one operation and can be resumed. ``unsubscribed`` has the tasks of
    those operations that the client ended, rather than its connection."""

    database: Database
    engine: ChatEngine
    log: StreamLog
    registry: Registry
    router: Router
    readers: Readers
    watcher: Watcher
    viewer_id: str
    cursor: Cursor | None = None
    unsubscribed: WeakSet[asyncio.Task[None]] = field(default_factory=WeakSet, compare=False)

    @cached_property
    def loaders(self) -> Loaders:
        return Loaders(self.database, self.viewer_id, patience_seconds=0, retry_seconds=0)

    @cached_property
    def patient_loaders(self) -> Loaders:
        timing = self.log.timing
        return Loaders(
            self.database,
            self.viewer_id,
            patience_seconds=timing.patience_seconds,
            retry_seconds=timing.retry_seconds,
        )

    def has_unsubscribed(self) -> bool:
        """Whether the client ended the operation that calls this."""
        return asyncio.current_task() in self.unsubscribed


Info: TypeAlias = strawberry.Info[Context, None]


def loaders_of(info: Info) -> Loaders:
    """A subscription waits for the database as its log does, or the last event would turn into an error."""
    subscribed = info.operation.operation is OperationType.SUBSCRIPTION
    return info.context.patient_loaders if subscribed else info.context.loaders
