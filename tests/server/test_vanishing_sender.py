"""Whoever sends a message may be gone before it is stored; the message is answered all the same."""

import asyncio
import gc
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from db.bell import Bell
from db.database import Connection, Database
from server.draft import Draft
from tests.server.begin import VIEWER
from tests.server.test_chat import House


class Slow(Database):
    """A database whose commits return only when they are let."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._pool, database._limits)
        self.committed = asyncio.Event()
        self.may_return = asyncio.Event()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        async with super().transaction() as connection:
            yield connection
        self.committed.set()
        await self.may_return.wait()


async def test_a_message_is_answered_though_its_sender_is_gone(database: Database, bell: Bell) -> None:
    slow = Slow(database)
    house = House(slow, bell)
    async with house.log.running(), house.engine.running(grace_seconds=5):
        sending = asyncio.create_task(house.engine.send(VIEWER, Draft("hello", model="scripted:words 2")))
        await slow.committed.wait()
        sending.cancel()
        slow.may_return.set()
        with pytest.raises(asyncio.CancelledError):
            await sending
    (row,) = await database.fetch("SELECT status, finished_at FROM generations")
    assert row["status"] == "completed"
    assert row["finished_at"] is not None


class Held(Database):
    """A database whose transactions begin only when they are let."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._pool, database._limits)
        self.entered = asyncio.Event()
        self.may_begin = asyncio.Event()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        self.entered.set()
        await self.may_begin.wait()
        async with super().transaction() as connection:
            yield connection


async def test_a_sender_that_is_gone_is_told_of_no_conflict(
    database: Database, bell: Bell, caplog: pytest.LogCaptureFixture
) -> None:
    """Its key was used elsewhere meanwhile; that is nobody's failure, and the log has no traceback of it."""
    held = Held(database)
    here, there = House(database, bell), House(held, bell)
    draft = Draft("hello", model="scripted:words 2", client_key="mine")
    async with AsyncExitStack() as stack:
        for house in (here, there):
            await stack.enter_async_context(house.log.running())
            await stack.enter_async_context(house.engine.running(grace_seconds=5))
        sending = asyncio.create_task(there.engine.send(VIEWER, draft))
        await held.entered.wait()
        await here.engine.send(VIEWER, draft)
        sending.cancel()
        await asyncio.sleep(0)  # for the cancellation to arrive before the conflict
        held.may_begin.set()
        with pytest.raises(asyncio.CancelledError):
            await sending
        del sending
        gc.collect()
    assert "never retrieved" not in caplog.text
