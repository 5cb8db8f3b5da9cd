"""Whoever sends a message may be gone before it is stored; the message is answered all the same."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

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


async def test_a_message_is_answered_though_its_sender_is_gone(database: Database) -> None:
    slow = Slow(database)
    house = House(slow)
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
