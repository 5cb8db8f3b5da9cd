"""The GraphQL endpoint on a live server, with a real Postgres and scripted models behind it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest

from db.bell import Bell
from db.database import Database
from providers.base import ModelInfo
from providers.errors import Unavailable
from providers.registry import Registration, Registry
from providers.reply import ReplyLimits
from providers.router import Router
from providers.scripted import Scripted
from server.api import Context, graphql_app
from server.chat import ChatEngine
from server.events import LoggedEvent
from server.readers import Readers
from server.stream_log import LogTiming, StreamLog
from server.watcher import Watcher
from tests.graphql_client import GraphQLClient
from tests.server.live import live

QUICK = LogTiming(flush_seconds=0.005, poll_seconds=0.05, retry_seconds=0.02)
PATIENT = ReplyLimits(first_token_seconds=60, silence_seconds=60)


class WatchedLog(StreamLog):
    """A log that knows how many read it."""

    def __init__(self, database: Database, bell: Bell, owner: UUID, timing: LogTiming) -> None:
        super().__init__(database, bell, owner, timing)
        self._changed = asyncio.Condition()
        self._readers = 0

    async def read(self, generation_id: UUID, after: int = 0) -> AsyncGenerator[LoggedEvent, None]:
        await self._count(1)
        try:
            async with aclosing(super().read(generation_id, after)) as events:
                async for event in events:
                    yield event
        finally:
            await self._count(-1)

    async def has_readers(self, number: int) -> None:
        """Return when exactly ``number`` read."""
        async with asyncio.timeout(5), self._changed:
            await self._changed.wait_for(lambda: self._readers == number)

    async def _count(self, step: int) -> None:
        self._readers += step
        async with self._changed:
            self._changed.notify_all()


class Dark(Scripted):
    """A provider whose server can be switched off."""

    name = "dark"

    def __init__(self, limits: ReplyLimits, models: Sequence[ModelInfo]) -> None:
        super().__init__(limits)
        self.listed = list(models)
        self.is_on = True

    async def models(self) -> list[ModelInfo]:
        if not self.is_on:
            raise Unavailable("nothing answers at http://127.0.0.1:1")
        return self.listed

    def find(self, name: str, listed: Sequence[ModelInfo]) -> ModelInfo | None:  # type: ignore[override]
        return next((model for model in listed if model.name == name), None)


class House:
    """A server, and a client of it. Everything is the viewer's whose name is set here."""

    def __init__(self, database: Database, bell: Bell, timing: LogTiming = QUICK) -> None:
        self.database = database
        self.viewer_id = "somebody"
        self.scripted = Scripted(PATIENT)
        self.dark = Dark(PATIENT, [])
        self.registry = Registry(
            [Registration(self.scripted, "scripted"), Registration(self.dark, "dark", ("night",))],
            max_age_seconds=0,
        )
        self.router = Router(self.registry, default_provider="scripted")
        self.log = WatchedLog(database, bell, uuid4(), timing)
        self.readers = Readers(database, absence_seconds=1.0, retry_seconds=0.02)
        self.watcher = Watcher(
            database, bell, poll_seconds=timing.poll_seconds, patience_seconds=timing.patience_seconds
        )
        self.engine = ChatEngine(database, self.router, self.log)
        self.endpoint = graphql_app(lambda _: self.context(), asyncio.Event())
        self.client: GraphQLClient

    def context(self) -> Context:
        return Context(
            self.database,
            self.engine,
            self.log,
            self.registry,
            self.router,
            self.readers,
            self.watcher,
            viewer_id=self.viewer_id,
        )

    async def count(self, table: str) -> int:
        number: int = await self.database.fetchval(f"SELECT count(*) FROM {table}")
        return number

    async def send(self, script: str, message: str = "hello", **more: Any) -> Any:
        """Send a message; its generation, with the ids that tests need."""
        return await self.client.ask(
            """
            mutation ($input: MessageInput!) {
              sendMessage(input: $input) { id status message { id parentId } conversation { id } }
            }
            """,
            input={"message": message, "model": f"scripted:{script}", **more},
        )

    async def say(self, script: str, message: str = "hello", **more: Any) -> Any:
        """Send a message, and wait for its generation's end."""
        generation = await self.send(script, message, **more)
        await self.engine.ended(UUID(generation["id"]))
        return generation


@asynccontextmanager
async def opened(house: House) -> AsyncGenerator[House]:
    """The house with its server running."""
    async with (
        house.log.running(),
        house.readers.running(),
        house.watcher.running(),
        house.engine.running(grace_seconds=0),
        live(house.endpoint) as port,
    ):
        house.client = GraphQLClient(f"http://127.0.0.1:{port}/graphql")
        async with house.client.http:
            yield house
    await house.registry.aclose()


@pytest.fixture
async def house(database: Database, bell: Bell) -> AsyncIterator[House]:
    async with opened(House(database, bell)) as house:
        yield house
