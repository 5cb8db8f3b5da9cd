"""Old logs go, but for their first and last row; what the replies say stays, and every reader gets it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from db import conversations, generation_log, generations
from db.bell import Bell
from db.database import Database
from providers.base import Phase
from server.events import PhaseChanged, Started, Stopped, TextDelta
from server.purge import Purge
from server.stream_log import StreamLog
from tests.db.processes import eventually
from tests.server.begin import VIEWER
from tests.server.replica import Link, LinkState
from tests.server.test_stream_log import DONE, QUICK, attempt, collect, new_writer, text_of

_DAY = 86_400.0


@pytest.fixture
async def log(database: Database, bell: Bell) -> AsyncIterator[StreamLog]:
    async with StreamLog(database, bell, uuid4(), QUICK).running() as log:
        yield log


async def said(database: Database, log: StreamLog) -> UUID:
    """A reply of at least five rows that has ended just now."""
    writer = await new_writer(database, log)
    async with aclosing(log.read(writer.generation_id, after=1)) as events:
        await writer.append(PhaseChanged(Phase.WAITING))
        await anext(events)
        for word in ("It ", "is ", "said."):
            await writer.append(TextDelta(word))
            await anext(events)
    await writer.finish(DONE, attempt())
    return writer.generation_id


async def age(database: Database, generation_id: UUID, seconds: float) -> None:
    await database.execute(
        "UPDATE generations SET finished_at = finished_at - $2::interval WHERE id = $1",
        generation_id,
        timedelta(seconds=seconds),
    )


async def numbers(database: Database, generation_id: UUID) -> list[int]:
    return [row.seq for row in await generation_log.events(database, generation_id, 0, 100)]


async def test_the_first_and_the_last_row_stay(database: Database, log: StreamLog) -> None:
    generation_id = await said(database, log)
    (*_, last) = await numbers(database, generation_id)
    assert last >= 5
    await age(database, generation_id, _DAY + 1)
    assert await Purge(database, retention_seconds=_DAY).once() == 1
    assert await numbers(database, generation_id) == [1, last]
    assert await Purge(database, retention_seconds=_DAY).once() == 0, "not twice"


@pytest.mark.parametrize("after", [0, 1, 2, 6, 1000])
async def test_readers_still_learn_how_it_ended(
    database: Database, bell: Bell, log: StreamLog, after: int
) -> None:
    generation_id = await said(database, log)
    await age(database, generation_id, 2 * _DAY)
    await Purge(database, retention_seconds=_DAY).once()
    async with StreamLog(database, bell, uuid4(), QUICK).running() as elsewhere:
        for where in (log, elsewhere):
            seen = [event.event for event in await collect(where, generation_id, after)]
            assert [type(event) for event in seen] == ([Started, type(DONE)] if after == 0 else [type(DONE)])
    generation = await generations.get(database, VIEWER, generation_id)
    assert generation is not None
    (message,) = await conversations.messages(database, VIEWER, [generation.message_id])
    assert (message.status, message.content) == ("completed", "It is said.")


async def test_a_reader_in_the_middle_goes_on_to_the_end(database: Database, log: StreamLog) -> None:
    """It was slow for longer than logs are kept."""
    generation_id = await said(database, log)
    async with aclosing(log.read(generation_id)) as events:
        assert isinstance((await anext(events)).event, Started)
        await age(database, generation_id, 2 * _DAY)
        await Purge(database, retention_seconds=_DAY).once()
        rest = [event async for event in events]
    assert rest[-1].event == DONE
    assert text_of(rest) in ("", "It is said."), "what it had been given already, whole"


async def test_what_runs_or_ended_lately_stays(database: Database, log: StreamLog) -> None:
    lately = await said(database, log)
    await age(database, lately, _DAY - 60)
    writer = await new_writer(database, log)
    async with aclosing(log.read(writer.generation_id, after=1)) as events:
        await writer.append(TextDelta("It runs."))
        await anext(events)
    await database.execute("UPDATE generations SET started_at = started_at - interval '9 days'")
    before = [await numbers(database, id_) for id_ in (lately, writer.generation_id)]
    assert await Purge(database, retention_seconds=_DAY).once() == 0
    assert [await numbers(database, id_) for id_ in (lately, writer.generation_id)] == before
    await writer.finish(Stopped(), attempt("stopped"))


async def test_in_batches_until_all_are_done(database: Database, log: StreamLog) -> None:
    for _ in range(7):
        await age(database, await said(database, log), 2 * _DAY)
    assert await Purge(database, retention_seconds=_DAY, batch=3).once() == 7
    left = await database.fetchval(
        "SELECT max(n) FROM (SELECT count(*) n FROM generation_events GROUP BY generation_id) e"
    )
    assert left == 2


async def test_two_at_once_do_not_disturb_each_other(database: Database, log: StreamLog) -> None:
    for _ in range(6):
        await age(database, await said(database, log), 2 * _DAY)
    one, other = (Purge(database, retention_seconds=_DAY, batch=2) for _ in range(2))
    purged = sum(await asyncio.gather(one.once(), other.once()))
    assert purged + await one.once() == 6, "each is counted once"


async def test_only_one_process_does_it_at_a_time(database: Database, log: StreamLog) -> None:
    await age(database, await said(database, log), 2 * _DAY)
    purge = Purge(database, retention_seconds=_DAY)
    async with database.transaction() as connection:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", generation_log._PURGE_LOCK)
        assert await purge.once() == 0
    assert await purge.once() == 1


async def test_it_outlives_a_database_that_is_away(database: Database, log: StreamLog) -> None:
    generation_id = await said(database, log)
    await age(database, generation_id, 2 * _DAY)
    link = Link(database)
    link.state = LinkState.AWAY

    async def is_purged() -> bool:
        return len(await numbers(database, generation_id)) == 2

    async with Purge(link, retention_seconds=_DAY, every_seconds=0.01).running():
        await database.ping()
        assert not await is_purged()
        link.state = LinkState.UP
        await eventually(is_purged)
