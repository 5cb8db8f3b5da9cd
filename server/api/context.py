"""What resolvers work with: the parts of the server, on behalf of one viewer."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias, TypeVar
from uuid import UUID

import strawberry
from strawberry.dataloader import DataLoader

from db import conversations, generations
from db.database import Database
from db.generations import Generation
from providers.registry import Registry
from providers.router import Router
from server.api.cursor import Cursor
from server.chat import ChatEngine
from server.stream_log import StreamLog


class _Record(Protocol):
    @property
    def id(self) -> UUID: ...


RecordT = TypeVar("RecordT", bound=_Record)
Fetch: TypeAlias = Callable[[Database, str, Sequence[UUID]], Awaitable[Sequence[RecordT]]]


class Loaders:
    """Lookups by id, those of one moment as one query; None for what is not there or not the viewer's.

    Nothing is kept: a subscription lives for minutes, and what it shows has changed since it began.
    """

    def __init__(self, database: Database, viewer_id: str) -> None:
        self._database = database
        self._viewer_id = viewer_id
        self.conversation = self._by_id(conversations.get_many)
        self.message = self._by_id(conversations.messages)
        self.generation = self._by_id(generations.get_many)
        self.generation_of_message = DataLoader(self._generations_of_messages, cache=False)

    def _by_id(self, fetch: Fetch[RecordT]) -> DataLoader[UUID, RecordT | None]:
        async def load(ids: list[UUID]) -> list[RecordT | None]:
            found = {record.id: record for record in await fetch(self._database, self._viewer_id, ids)}
            return [found.get(id_) for id_ in ids]

        return DataLoader(load, cache=False)

    async def _generations_of_messages(self, message_ids: list[UUID]) -> list[Generation | None]:
        rows = await generations.of_messages(self._database, self._viewer_id, message_ids)
        found = {generation.message_id: generation for generation in rows}
        return [found.get(message_id) for message_id in message_ids]


@dataclass(frozen=True)
class Context:
    """One per HTTP request and per WebSocket. Everything read or written is ``viewer_id``'s. ``cursor`` is
    there for an event stream, which runs one operation and can be resumed."""

    database: Database
    engine: ChatEngine
    log: StreamLog
    registry: Registry
    router: Router
    viewer_id: str
    cursor: Cursor | None = None

    @cached_property
    def loaders(self) -> Loaders:
        return Loaders(self.database, self.viewer_id)


Info: TypeAlias = strawberry.Info[Context, None]
