"""Readers of replies that stop without them: one who is there counts, whatever else goes on."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from db import generations
from db.database import Database
from db.generations import Generation
from server.readers import Readers
from tests.server.begin import begin

ABSENCE_SECONDS = 0.4


@pytest.fixture
async def readers(database: Database) -> AsyncIterator[Readers]:
    readers = Readers(database, absence_seconds=ABSENCE_SECONDS, retry_seconds=0.02)
    async with readers.running():
        yield readers


async def lonely(database: Database, owner: UUID) -> Generation:
    """One that stops without readers."""
    generation, _ = await begin(database, owner)
    await database.execute("UPDATE generations SET stops_without_readers = true WHERE id = $1", generation.id)
    return replace(generation, stops_without_readers=True)


async def is_to_stop(database: Database, owner: UUID, generation: Generation) -> bool:
    renewed = await generations.renew(database, owner, [generation.id], 10, judges_readers=True)
    return renewed[generation.id]


async def test_one_who_stays_counts_while_others_come_and_go(database: Database, readers: Readers) -> None:
    """More often than those who stay are told of, for longer than an absence."""
    owner = uuid4()
    read, other = await lonely(database, owner), await lonely(database, owner)
    loop = asyncio.get_running_loop()
    with readers.present(read, lambda: False):
        until = loop.time() + 3 * ABSENCE_SECONDS
        while loop.time() < until:
            with readers.present(other, lambda: True):
                await database.ping()
        assert not await is_to_stop(database, owner, read)


async def test_of_many_who_leave_at_once_each_ones_reply_is_asked_to_stop(
    database: Database, readers: Readers
) -> None:
    owner = uuid4()
    left, read = [await lonely(database, owner) for _ in range(20)], await lonely(database, owner)
    with readers.present(read, lambda: False):
        for generation in (*left, read):
            with readers.present(generation, lambda: True):
                pass
        while len(await generations.to_stop(database, [generation.id for generation in left])) < len(left):
            await database.ping()
        assert await generations.to_stop(database, [read.id]) == []
