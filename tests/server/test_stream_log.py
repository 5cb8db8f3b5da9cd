"""Written once, read by everybody: what is shown is stored, complete, in order, and ends exactly once."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from db import conversations, generation_log, generations
from db.bell import Bell
from db.database import Connection, Database, DatabaseUnavailable, Record
from db.generation_log import LogRow
from db.usage import Attempt, Usage
from providers.base import FinishReason, Phase
from server.events import (
    Completed,
    Failed,
    LoggedEvent,
    PhaseChanged,
    ReasoningDelta,
    Started,
    Stopped,
    Terminal,
    TextDelta,
)
from server.leases import Leases
from server.log_rows import encode, to_ending
from server.stream_log import LogTiming, StreamLog, Writer
from tests.server.begin import VIEWER, begin

QUICK = LogTiming(flush_seconds=0.005, lease_seconds=60.0, poll_seconds=0.05, retry_seconds=0.02)
DONE = Completed(FinishReason.STOP)


@pytest.fixture
async def log(database: Database, bell: Bell) -> AsyncIterator[StreamLog]:
    async with StreamLog(database, bell, uuid4(), QUICK).running() as log:
        yield log


class Aborts:
    """Counts how often the log asked for a generation to end."""

    def __init__(self) -> None:
        self.count = 0
        self.happened = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.happened.set()


async def new_writer(database: Database, log: StreamLog, aborts: Aborts | None = None) -> Writer:
    generation, started = await begin(database, log.owner, lease_seconds=log.timing.lease_seconds)
    return log.writer(generation.id, started, aborts or Aborts())


def attempt(outcome: str = "completed") -> Attempt:
    now = datetime.now(UTC)
    return Attempt(
        1, "scripted", "scripted:words 3", now, now, now, outcome, None, Usage(3, 2, "provider", 1.0, 2.0)
    )


async def collect(log: StreamLog, generation_id: UUID, after: int = 0) -> list[LoggedEvent]:
    async with aclosing(log.read(generation_id, after)) as events:
        return [event async for event in events]


def text_of(events: list[LoggedEvent]) -> str:
    return "".join(event.event.text for event in events if isinstance(event.event, TextDelta))


def assert_tiles(events: list[LoggedEvent], after: int = 0) -> None:
    """The ranges follow one another without gap or overlap, and only the last event is terminal."""
    for event in events:
        assert event.from_seq == after + 1
        assert event.seq >= event.from_seq
        after = event.seq
    assert [isinstance(event.event, Terminal) for event in events] == [False] * (len(events) - 1) + [True]


async def test_a_reader_sees_everything_in_order_while_it_is_written(
    database: Database, log: StreamLog
) -> None:
    writer = await new_writer(database, log)
    reader = asyncio.create_task(collect(log, writer.generation_id))
    await writer.append(PhaseChanged(Phase.WAITING))
    await writer.append(ReasoningDelta("let me see"))
    for word in range(50):
        await writer.append(TextDelta(f"w{word} "))
        await asyncio.sleep(0)
    await writer.finish(DONE, attempt())

    seen = await reader
    assert_tiles(seen)
    assert isinstance(seen[0].event, Started)
    assert [event.event for event in seen if isinstance(event.event, ReasoningDelta)] == [
        ReasoningDelta("let me see")
    ]
    assert text_of(seen) == "".join(f"w{word} " for word in range(50))


async def test_replay_after_any_number_is_the_rest_of_the_log(database: Database, log: StreamLog) -> None:
    writer = await new_writer(database, log)
    async with aclosing(log.read(writer.generation_id)) as live:
        for word in ["one", "two", "three", "four"]:
            await writer.append(TextDelta(word))
            while text_of([event := await anext(live)]) != word:
                assert not isinstance(event.event, TextDelta)
    await writer.finish(DONE, attempt())

    whole = await database.fetchval(
        "SELECT max(seq) FROM generation_events WHERE generation_id = $1", writer.generation_id
    )
    assert whole == 6
    for after in range(whole):
        rest = await collect(log, writer.generation_id, after)
        assert_tiles(rest, after)
        assert text_of(rest) == "".join(["one", "two", "three", "four"][max(after - 1, 0) :])
    for beyond in (whole, whole + 1, 10_000):
        assert [event.event for event in await collect(log, writer.generation_id, beyond)] == [DONE]


async def test_a_reader_beyond_the_end_of_a_running_generation_gets_its_terminal_event(
    database: Database, log: StreamLog
) -> None:
    writer = await new_writer(database, log)
    reader = asyncio.create_task(collect(log, writer.generation_id, 1000))
    await writer.append(TextDelta("hello"))
    await writer.finish(Stopped(), attempt("stopped"))
    assert [event.event for event in await reader] == [Stopped()]


async def test_reading_what_does_not_exist_is_an_error(log: StreamLog) -> None:
    with pytest.raises(LookupError):
        await collect(log, uuid4())


async def test_nothing_is_shown_before_it_is_stored(database: Database, log: StreamLog) -> None:
    writer = await new_writer(database, log)
    async with aclosing(log.read(writer.generation_id, after=1)) as live:
        for number in range(20):
            await writer.append(TextDelta(f"{number} "))
            event = await anext(live)
            stored = await generation_log.events(database, writer.generation_id, event.from_seq - 1, 100)
            assert stored[-1].seq >= event.seq
    await writer.finish(DONE, attempt())


async def test_a_reader_that_lags_gets_neighbouring_deltas_as_one(database: Database, log: StreamLog) -> None:
    writer = await new_writer(database, log)
    async with (
        aclosing(log.read(writer.generation_id)) as fast,
        aclosing(log.read(writer.generation_id)) as slow,
    ):
        assert isinstance((await anext(slow)).event, Started)
        await anext(fast)
        for number in range(30):
            await writer.append(TextDelta(f"{number} "))
            await anext(fast)
        lagged = await anext(slow)
    assert (lagged.from_seq, lagged.seq) == (2, 31)
    assert lagged.event == TextDelta("".join(f"{number} " for number in range(30)))
    await writer.finish(DONE, attempt())


async def test_a_long_reply_is_replayed_from_the_database_while_it_runs(
    database: Database, log: StreamLog
) -> None:
    """More rows than the tail in memory holds."""
    writer = await new_writer(database, log)
    async with aclosing(log.read(writer.generation_id, after=1)) as live:
        for number in range(600):
            await writer.append(TextDelta(f"{number} "))
            await anext(live)
    late = asyncio.create_task(collect(log, writer.generation_id))
    await writer.finish(DONE, attempt())
    seen = await late
    assert_tiles(seen)
    assert text_of(seen) == "".join(f"{number} " for number in range(600))


async def test_the_message_keeps_the_text_that_the_log_showed(database: Database, log: StreamLog) -> None:
    writer = await new_writer(database, log)
    generation = await generations.get(database, VIEWER, writer.generation_id)
    assert generation is not None
    async with aclosing(log.read(writer.generation_id, after=1)) as live:
        await writer.append(TextDelta("The capital "))
        await anext(live)
        (so_far,) = await conversations.messages(database, VIEWER, [generation.message_id])
        assert (so_far.status, so_far.content) == ("generating", "The capital ")
        assert (await generations.get(database, VIEWER, generation.id)).status == "streaming"  # type: ignore[union-attr]
    await writer.append(ReasoningDelta("hm\0m"))
    await writer.append(TextDelta("is Paris. 🗼"))
    await writer.finish(DONE, attempt())

    (message,) = await conversations.messages(database, VIEWER, [generation.message_id])
    assert (message.status, message.content) == ("completed", "The capital is Paris. 🗼")
    assert (message.reasoning, message.finish_reason) == ("hmm", "stop")
    assert (message.prompt_tokens, message.completion_tokens, message.usage_source) == (3, 2, "provider")
    usage = await database.fetch("SELECT * FROM model_usage_stats")
    assert [(row["outcome"], row["completion_tokens"]) for row in usage] == [("completed", 2)]


async def test_a_writer_without_its_lease_stores_nothing_and_harms_nobody(
    database: Database, log: StreamLog
) -> None:
    aborts = Aborts()
    lost = await new_writer(database, log, aborts)
    good = await new_writer(database, log)
    await database.execute("UPDATE generations SET owner = $2 WHERE id = $1", lost.generation_id, uuid4())

    await lost.append(TextDelta("never seen"))
    await good.append(TextDelta("fine"))
    async with asyncio.timeout(5):
        await aborts.happened.wait()
    await lost.finish(DONE, attempt())
    await good.finish(DONE, attempt())

    assert text_of(await collect(log, good.generation_id)) == "fine"
    rows = await generation_log.events(database, lost.generation_id, 0, 100)
    assert [row.seq for row in rows] == [1]
    running = await generations.get(database, VIEWER, lost.generation_id)
    assert running is not None
    assert running.finished_at is None


async def test_an_ended_generation_takes_nothing_more_and_no_second_end(
    database: Database, log: StreamLog
) -> None:
    writer = await new_writer(database, log)
    await writer.finish(DONE, attempt())
    before = await generation_log.events(database, writer.generation_id, 0, 100)
    late = LogRow(writer.generation_id, 99, '{"kind": "text", "text": "late"}')
    assert await generation_log.append(database, log.owner, [late], {}) == set()
    assert await generation_log.events(database, writer.generation_id, 0, 100) == before


async def test_the_same_end_told_twice_is_one_end(database: Database, log: StreamLog) -> None:
    """As after a commit whose answer was lost."""
    generation, _ = await begin(database, log.owner)
    ending = to_ending(DONE, attempt(), [LogRow(generation.id, 2, encode(DONE))])
    assert await generation_log.finish(database, log.owner, ending)
    assert await generation_log.finish(database, log.owner, ending)
    other = to_ending(Stopped(), attempt("stopped"), [LogRow(generation.id, 2, encode(Stopped()))])
    assert not await generation_log.finish(database, log.owner, other)
    assert len(await database.fetch("SELECT * FROM model_usage_stats")) == 1


async def test_an_abandoned_generation_is_closed_with_its_text(
    database: Database, bell: Bell, log: StreamLog
) -> None:
    """D2, C8: the process that produced the reply is gone; another closes it."""
    gone = uuid4()
    generation, _ = await begin(database, gone, lease_seconds=-1)
    await generation_log.append(
        database, gone, [LogRow(generation.id, 2, '{"kind": "text", "text": "half an ans"}')], {}
    )
    kept, _ = await begin(database, uuid4(), lease_seconds=60)
    await Leases(
        database, bell, log.owner, lease_seconds=60, running=tuple, stop=lambda _: None
    ).close_abandoned()

    seen = await collect(log, generation.id)
    assert_tiles(seen)
    end = seen[-1].event
    assert isinstance(end, Failed)
    assert (end.outcome, end.code) == ("interrupted", "INTERRUPTED")
    (message,) = await conversations.messages(database, VIEWER, [generation.message_id])
    assert (message.status, message.content, message.usage_source) == (
        "interrupted",
        "half an ans",
        "estimated",
    )
    assert (await generations.get(database, VIEWER, kept.id)).finished_at is None  # type: ignore[union-attr]
    late = LogRow(generation.id, 4, '{"kind": "text", "text": "wer"}')
    assert await generation_log.append(database, gone, [late], {}) == set()


async def test_a_request_to_stop_reaches_the_owner(database: Database, bell: Bell) -> None:
    timing = LogTiming(lease_seconds=0.2, poll_seconds=0.05)
    async with StreamLog(database, bell, uuid4(), timing).running() as log:
        aborts = Aborts()
        writer = await new_writer(database, log, aborts)
        await generations.request_stop(database, VIEWER, writer.generation_id)
        async with asyncio.timeout(5):
            await aborts.happened.wait()
        await writer.finish(Stopped(), attempt("stopped"))


async def test_another_process_reads_what_this_one_writes(
    database: Database, bell: Bell, log: StreamLog
) -> None:
    writer = await new_writer(database, log)
    async with StreamLog(database, bell, uuid4(), QUICK).running() as elsewhere:
        reader = asyncio.create_task(collect(elsewhere, writer.generation_id))
        for number in range(10):
            await writer.append(TextDelta(f"{number} "))
        await writer.finish(DONE, attempt())
        seen = await reader
    assert_tiles(seen)
    assert text_of(seen) == "".join(f"{number} " for number in range(10))


async def test_one_commit_serves_all_streams(database: Database, log: StreamLog) -> None:
    writers = [await new_writer(database, log) for _ in range(20)]
    readers = [asyncio.create_task(collect(log, writer.generation_id)) for writer in writers]
    for number in range(20):
        for writer in writers:
            await writer.append(TextDelta(f"{number} "))
        await asyncio.sleep(0)
    for writer in writers:
        await writer.finish(DONE, attempt())
    for seen in await asyncio.gather(*readers):
        assert_tiles(seen)
        assert text_of(seen) == "".join(f"{number} " for number in range(20))


class Away(Database):
    """A database that cannot be reached while ``is_away``."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._pool, database._limits)
        self.is_away = False

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        self._check()
        async with super().transaction() as connection:
            yield connection

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        self._check()
        return await super().fetch(sql, *args)

    def _check(self) -> None:
        if self.is_away:
            raise DatabaseUnavailable("it is away")


async def test_a_reply_waits_for_the_database(database: Database, bell: Bell) -> None:
    away = Away(database)
    async with StreamLog(away, bell, uuid4(), QUICK).running() as log:
        writer = await new_writer(away, log)
        reader = asyncio.create_task(collect(log, writer.generation_id))
        away.is_away = True
        await writer.append(TextDelta("one "))
        finishing = asyncio.create_task(writer.finish(DONE, attempt()))
        await asyncio.sleep(5 * QUICK.retry_seconds)
        assert not finishing.done()
        away.is_away = False
        await finishing
        seen = await reader
    assert_tiles(seen)
    assert text_of(seen) == "one "


async def test_a_reply_whose_end_cannot_be_stored_is_closed_when_it_can(
    database: Database, bell: Bell
) -> None:
    """No reader waits in silence: it is told that the database is away, and later how the reply ended."""
    away = Away(database)
    timing = replace(QUICK, lease_seconds=0.4, patience_seconds=0.1)
    async with StreamLog(away, bell, uuid4(), timing).running() as log:
        writer = await new_writer(away, log)
        reader = asyncio.create_task(collect(log, writer.generation_id))
        async with aclosing(log.read(writer.generation_id, after=1)) as live:
            await writer.append(TextDelta("half"))
            await anext(live)
        away.is_away = True
        await writer.finish(DONE, attempt())
        with pytest.raises(DatabaseUnavailable):
            await reader
        away.is_away = False
        async with asyncio.timeout(10):
            seen = await collect(log, writer.generation_id)
    assert_tiles(seen)
    assert text_of(seen) == "half"
    assert isinstance(seen[-1].event, Failed)
    assert seen[-1].event.outcome == "interrupted"


async def test_the_end_of_the_process_does_not_wait_for_a_database_that_is_away(
    database: Database, bell: Bell
) -> None:
    away = Away(database)
    async with StreamLog(away, bell, uuid4(), QUICK).running() as log:
        writer = await new_writer(away, log)
        away.is_away = True
        finishing = asyncio.create_task(writer.finish(DONE, attempt()))
        log.give_up_after(0.05)
        async with asyncio.timeout(10):
            await finishing
