"""Reading on one replica what another one writes: rung for, asked for once, and true to the log."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from msgspec import DecodeError

from db import generation_log
from db.bell import Bell, Channel
from db.database import Database, DatabaseUnavailable, Record
from db.generation_log import LogRow
from server.events import Completed, Failed, LoggedEvent, Started, Stopped, TextDelta
from server.leases import Leases
from server.log_rows import encode
from server.stream_log import LogTiming, StreamLog, Writer
from tests.db.processes import eventually
from tests.server.replica import Link, LinkState
from tests.server.test_stream_log import DONE, assert_tiles, attempt, collect, new_writer, text_of

_PATIENCE_SECONDS = 20.0
_HOUR = 3600.0
_RUNG = LogTiming(flush_seconds=0.005, lease_seconds=_HOUR, poll_seconds=_HOUR, retry_seconds=0.02)
_POLLED = replace(_RUNG, poll_seconds=0.05)


class Counted(Database):
    """Knows how often it was asked, and can keep what it is asked by the follower to itself."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._pool, database._limits)
        self.count = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.is_asked = asyncio.Event()

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        self.count += 1
        rows = await super().fetch(sql, *args)
        if "LATERAL" in sql:
            self.is_asked.set()
            await self.answers.wait()
        return rows


@pytest.fixture
async def here(database: Database, bell: Bell) -> AsyncIterator[StreamLog]:
    """Where the replies are written."""
    async with StreamLog(database, bell, uuid4(), _RUNG).running() as log:
        yield log


@asynccontextmanager
async def elsewhere(database: Database, bell: Bell, timing: LogTiming = _RUNG) -> AsyncGenerator[StreamLog]:
    async with (
        asyncio.timeout(_PATIENCE_SECONDS),
        StreamLog(database, bell, uuid4(), timing).running() as log,
    ):
        yield log


async def test_the_bell_wakes_a_reader_of_another_replica(
    database: Database, bell: Bell, here: StreamLog
) -> None:
    """Nothing here polls within an hour."""
    writer = await new_writer(database, here)
    async with (
        elsewhere(database, bell) as there,
        aclosing(there.read(writer.generation_id)) as events,
    ):
        assert isinstance((await anext(events)).event, Started)
        for word in ("one ", "two ", "three "):
            await writer.append(TextDelta(word))
            assert (await anext(events)).event == TextDelta(word)
        await writer.finish(DONE, attempt())
        assert (await anext(events)).event == DONE
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_without_a_bell_it_looks_by_itself(
    database: Database, here: StreamLog, black_hole: str
) -> None:
    writer = await new_writer(database, here)
    url = black_hole.replace("http://", "postgresql://parley@")
    async with (
        Bell.listening(url) as silent,
        elsewhere(database, silent, _POLLED) as there,
        aclosing(there.read(writer.generation_id, after=1)) as events,
    ):
        await writer.append(TextDelta("hello"))
        assert (await anext(events)).event == TextDelta("hello")
        await writer.finish(DONE, attempt())
        assert (await anext(events)).event == DONE


async def test_one_query_serves_all_readers(database: Database, bell: Bell, here: StreamLog) -> None:
    counted = Counted(database)
    writers = [await new_writer(database, here) for _ in range(5)]
    async with elsewhere(counted, bell) as there, AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(aclosing(there.read(writer.generation_id)))
            for writer in writers
            for _ in range(20)
        ]
        for reader in readers:
            assert isinstance((await anext(reader)).event, Started)
        for word in map(str, range(10)):
            waiting = [asyncio.create_task(anext(reader)) for reader in readers]
            await eventually(lambda: _has_readers(there, len(readers)))
            before = counted.count
            for writer in writers:
                await writer.append(TextDelta(word))
            for event in await asyncio.gather(*waiting):
                assert event.event == TextDelta(word)
            assert 1 <= counted.count - before <= 2 * len(writers), "for each ring one"


async def _has_readers(log: StreamLog, number: int) -> bool:
    return sum(followed.readers for followed in log._follower._followed.values()) == number


async def test_nothing_is_asked_while_nobody_reads(database: Database, bell: Bell, here: StreamLog) -> None:
    counted = Counted(database)
    writer = await new_writer(database, here)
    async with elsewhere(counted, bell) as there:
        async with aclosing(there.read(writer.generation_id)) as events:
            await anext(events)
            await writer.append(TextDelta("read "))
            await anext(events)
        async with aclosing(here.read(writer.generation_id, after=2)) as own:
            before = counted.count
            heard = bell.rings(Channel.LOG)
            for word in ("not ", "read ", "now"):
                await writer.append(TextDelta(word))
                await anext(own)
                heard = await bell.wait(Channel.LOG, heard, at_most_seconds=_PATIENCE_SECONDS)
            await database.ping()
        assert counted.count <= before + 1, "at most for the ring that was on its way"
        await writer.finish(DONE, attempt())
        assert text_of(await collect(there, writer.generation_id)) == "read not read now"


async def test_each_reads_from_where_it_asked_to(database: Database, bell: Bell, here: StreamLog) -> None:
    writer = await new_writer(database, here)
    async with elsewhere(database, bell) as there, AsyncExitStack() as stack:
        own = await stack.enter_async_context(aclosing(here.read(writer.generation_id, after=1)))
        readers: list[tuple[int, asyncio.Task[list[LoggedEvent]]]] = []
        for number in range(8):
            await writer.append(TextDelta(f"{number} "))
            await anext(own)
            for after in (0, number // 2, number, number + 5, 1000):
                reading = asyncio.create_task(collect(there, writer.generation_id, after))
                readers.append((after, reading))
        await writer.finish(DONE, attempt())
        for after, reading in readers:
            seen = await reading
            if after < seen[-1].seq:
                assert_tiles(seen, after)
                words = [f"{number} " for number in range(8)][max(after - 1, 0) :]
                assert text_of(seen) == "".join(words)
            else:
                assert [event.event for event in seen] == [DONE]


async def test_a_reader_far_beyond_the_end_is_told_how_it_ends(
    database: Database, bell: Bell, here: StreamLog
) -> None:
    writer = await new_writer(database, here)
    async with elsewhere(database, bell, _POLLED) as there:
        reading = asyncio.create_task(collect(there, writer.generation_id, 1000))
        await writer.append(TextDelta("hello"))
        await writer.finish(Stopped(), attempt("stopped"))
        assert [event.event for event in await reading] == [Stopped()]


async def test_more_rows_than_one_query_brings(database: Database, bell: Bell, here: StreamLog) -> None:
    counted = Counted(database)
    writer = await new_writer(database, here)
    async with (
        elsewhere(counted, bell, replace(_RUNG, read_rows=5)) as there,
        aclosing(here.read(writer.generation_id, after=1)) as own,
        aclosing(there.read(writer.generation_id)) as events,
    ):
        seen = [await anext(events)]
        waiting = asyncio.create_task(anext(events))
        await counted.is_asked.wait()
        counted.answers.clear()
        for number in range(23):
            await writer.append(TextDelta(f"{number} "))
            await anext(own)
        counted.answers.set()
        await writer.finish(DONE, attempt())
        seen += [await waiting, *[event async for event in events]]
    assert_tiles(seen)
    assert text_of(seen) == "".join(f"{number} " for number in range(23))


@pytest.mark.parametrize("after", [0, 1, 2, 1000])
async def test_another_reader_comes_while_the_answer_for_the_last_one_is_on_its_way(
    database: Database, bell: Bell, here: StreamLog, after: int
) -> None:
    counted = Counted(database)
    writer = await new_writer(database, here)
    async with elsewhere(counted, bell, _POLLED) as there:
        async with aclosing(there.read(writer.generation_id)) as events:
            await anext(events)
            waiting = asyncio.create_task(anext(events))
            await counted.is_asked.wait()
            counted.answers.clear()
            async with aclosing(here.read(writer.generation_id, after=1)) as own:
                for word in ("one ", "two "):
                    await writer.append(TextDelta(word))
                    await anext(own)
            waiting.cancel()
            await asyncio.wait({waiting})
        reading = asyncio.create_task(collect(there, writer.generation_id, after))
        await database.ping()
        counted.answers.set()
        await writer.finish(DONE, attempt())
        seen = await reading
    if after < 1000:
        assert_tiles(seen, after)
        assert text_of(seen) == "one two " if after < 2 else "two "
    else:
        assert [event.event for event in seen] == [DONE]


async def test_a_generation_that_is_deleted_ends_its_readers(
    database: Database, bell: Bell, here: StreamLog
) -> None:
    writer = await new_writer(database, here)
    async with (
        elsewhere(database, bell, _POLLED) as there,
        aclosing(there.read(writer.generation_id)) as events,
    ):
        await anext(events)
        await database.execute("DELETE FROM conversations")
        with pytest.raises(LookupError):
            await anext(events)
    await writer.finish(Stopped(), attempt("stopped"))


async def test_a_short_absence_of_the_database_is_not_noticed(
    database: Database, bell: Bell, here: StreamLog
) -> None:
    link = Link(database)
    writer = await new_writer(database, here)
    async with (
        elsewhere(link, bell, _POLLED) as there,
        aclosing(here.read(writer.generation_id, after=1)) as own,
        aclosing(there.read(writer.generation_id)) as events,
    ):
        await anext(events)
        for state in (LinkState.AWAY, LinkState.DEAF):
            link.state = state
            await writer.append(TextDelta("meanwhile "))
            await anext(own)
            waiting = asyncio.create_task(anext(events))
            await bell.wait(Channel.LOG, bell.rings(Channel.LOG), at_most_seconds=0.2)
            assert not waiting.done()
            link.state = LinkState.UP
            assert (await waiting).event == TextDelta("meanwhile ")
        await writer.finish(DONE, attempt())


async def test_a_database_that_stays_away_is_said_to_be_so(
    database: Database, bell: Bell, here: StreamLog
) -> None:
    link = Link(database)
    writer = await new_writer(database, here)
    async with (
        elsewhere(link, bell, replace(_POLLED, patience_seconds=0.2)) as there,
        aclosing(there.read(writer.generation_id)) as events,
    ):
        await anext(events)
        link.state = LinkState.AWAY
        with pytest.raises(DatabaseUnavailable):
            await anext(events)
        link.state = LinkState.UP
        await writer.finish(DONE, attempt())
        assert_tiles(await collect(there, writer.generation_id))


async def test_patience_begins_with_the_reader(database: Database, bell: Bell, here: StreamLog) -> None:
    """Not when the database was last asked for another one: that may be hours ago."""
    link = Link(database)
    writer = await new_writer(database, here)
    async with elsewhere(link, bell, replace(_POLLED, patience_seconds=1.0)) as there:
        await bell.wait(Channel.LOG, bell.rings(Channel.LOG), at_most_seconds=1.1)  # nobody reads
        async with aclosing(there.read(writer.generation_id)) as events:
            await anext(events)
            link.state = LinkState.AWAY
            waiting = asyncio.create_task(anext(events))
            await bell.wait(Channel.LOG, bell.rings(Channel.LOG), at_most_seconds=0.2)
            link.state = LinkState.UP
            await writer.append(TextDelta("hello"))
            assert (await waiting).event == TextDelta("hello")
    await writer.finish(DONE, attempt())


async def test_what_cannot_be_read_ends_its_own_readers_alone(
    database: Database, bell: Bell, here: StreamLog
) -> None:
    """As while replicas of two versions run side by side."""
    newer, writer = await new_writer(database, here), await new_writer(database, here)
    async with (
        elsewhere(database, bell) as there,
        aclosing(there.read(newer.generation_id, after=1)) as strange,
        aclosing(there.read(writer.generation_id, after=1)) as events,
    ):
        reading = [asyncio.create_task(anext(reader)) for reader in (strange, events)]
        row = LogRow(newer.generation_id, 2, '{"kind": "not known yet"}')
        await generation_log.append(database, here.owner, [row], {})
        with pytest.raises(DecodeError):
            await reading[0]
        await writer.append(TextDelta("hello"))
        assert (await reading[1]).event == TextDelta("hello")
    for written in (newer, writer):
        await written.finish(DONE, attempt())


async def test_a_reader_beside_the_writer_that_lost_its_lease_goes_on_with_whoever_has_it(
    database: Database, bell: Bell, here: StreamLog
) -> None:
    aborted = asyncio.Event()
    writer = await _written_by(database, here, aborted)
    claimer = uuid4()
    async with aclosing(here.read(writer.generation_id, after=1)) as events:
        await writer.append(TextDelta("half"))
        assert (await anext(events)).event == TextDelta("half")
        await database.execute("UPDATE generations SET owner = $1", claimer)
        waiting = asyncio.create_task(anext(events))
        await writer.append(TextDelta(" of it is never stored"))
        await aborted.wait()
        await writer.finish(Stopped(), attempt("stopped"))
        more = LogRow(writer.generation_id, 3, encode(TextDelta(" by another")))
        assert await generation_log.append(database, claimer, [more], {}) == {writer.generation_id}
        assert (await waiting).event == TextDelta(" by another")
        await database.execute("UPDATE generations SET lease_until = now() - interval '1 second'")
        await Leases(
            database, bell, uuid4(), lease_seconds=60, running=tuple, stop=lambda _: None
        ).close_abandoned()
        end = (await anext(events)).event
        assert isinstance(end, Failed)
        assert end.outcome == "interrupted"


async def _written_by(database: Database, log: StreamLog, aborted: asyncio.Event) -> Writer:
    writer = await new_writer(database, log)
    writer.abort = aborted.set
    return writer


async def test_readers_that_come_and_go_leave_nothing_behind(
    database: Database, bell: Bell, here: StreamLog
) -> None:
    writers = [await new_writer(database, here) for _ in range(3)]
    async with elsewhere(database, bell) as there:
        for _ in range(20):
            readings = [asyncio.create_task(_first(there, writer.generation_id)) for writer in writers]
            for reading in readings:
                await reading
        assert there._follower._followed == {}
        endings = [asyncio.create_task(collect(there, writer.generation_id)) for writer in writers]
        for writer in writers:
            await writer.finish(DONE, attempt())
        for ending in endings:
            assert isinstance((await ending)[-1].event, Completed)
        assert there._follower._followed == {}


async def _first(log: StreamLog, generation_id: UUID) -> LoggedEvent:
    async with aclosing(log.read(generation_id)) as events:
        first = await anext(events)
        waiting = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        return first
