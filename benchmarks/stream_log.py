"""How long a token takes to its readers, through the log in Postgres, and what that costs.

    .venv/bin/python -m benchmarks.stream_log [--streams 100] [--seconds 10]

Prints three tables. Every stream gets 50 tokens a second, and each token is the moment at which it was handed
to the log, so that a reader can tell its age. Readers sit in the process that writes, or in another one with
a log and a bell of its own. Postgres is a private one, as ``parley serve`` starts it, every commit on disk.
"""

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import uvloop

from db.bell import Bell, Channel
from db.database import Database
from db.embedded import embedded_postgres
from db.migrations.runner import migrate
from db.usage import Attempt, Usage
from providers.base import FinishReason
from server.events import Completed, Started, TextDelta
from server.stream_log import StreamLog, Writer
from tests.server.begin import VIEWER, begin

TOKENS_PER_SECOND = 50
DONE = Completed(FinishReason.STOP)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Database, StreamLog, Bell]]:
    async with (
        Database.open(url) as database,
        Bell.listening(url) as bell,
        StreamLog(database, bell, uuid4()).running() as log,
    ):
        gc.collect()
        gc.freeze()  # as the server does
        yield database, log, bell


async def new_writer(database: Database, log: StreamLog, conversation_id: UUID | None = None) -> Writer:
    generation, started = await begin(database, log.owner, conversation_id=conversation_id)
    return log.writer(generation.id, started, lambda: None)


async def finish(writer: Writer) -> None:
    now = datetime.now(UTC)
    usage = Usage(1, 1, "provider", 1.0, 1.0)
    await writer.finish(
        DONE, Attempt(1, "scripted", "scripted:words 3", now, now, now, "completed", None, usage)
    )


class Audience:
    """Readers of these generations, who note how old each token was when it came."""

    def __init__(self, log: StreamLog, ids: Sequence[UUID]) -> None:
        self.ages: list[float] = []
        self._log = log
        self._ids = ids
        self._expected = len(ids)
        self._is_there = asyncio.Event()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator["Audience"]:
        """Entered when all are there, left when all have read to the end."""
        async with asyncio.TaskGroup() as tasks:
            for id_ in self._ids:
                tasks.create_task(self._read(id_))
            await self._is_there.wait()
            yield self

    async def _read(self, generation_id: UUID) -> None:
        async with aclosing(self._log.read(generation_id)) as events:
            async for event in events:
                match event.event:
                    case Started():
                        self._expected -= 1
                        if not self._expected:
                            self._is_there.set()
                    case TextDelta(text=text):
                        now = time.monotonic()
                        self.ages += [(now - float(moment)) * 1000 for moment in text.split()]


async def speak(writers: Sequence[Writer], seconds: float) -> int:
    """Every stream its tokens, the streams one after the other within each interval; how many there were. The
    streams end one after the other, in the last second."""
    interval = 1 / TOKENS_PER_SECOND
    rounds, started, tokens = int(seconds * TOKENS_PER_SECOND), time.monotonic(), 0
    async with asyncio.TaskGroup() as ends:
        for number in range(rounds):
            for place, writer in enumerate(writers):
                last = rounds - 1 - place * TOKENS_PER_SECOND // len(writers)
                if number > last:
                    continue
                due = started + (number + place / len(writers)) * interval
                if (pause := due - time.monotonic()) > 0:
                    await asyncio.sleep(pause)
                await writer.append(TextDelta(f"{time.monotonic():.6f} "))
                tokens += 1
                if number == last:
                    ends.create_task(finish(writer))
    return tokens


async def elsewhere(url: str) -> None:
    """The other process: reads what its input names, and prints what it saw."""
    async with opened(url) as (_, log, bell):
        ids = [UUID(id_) for id_ in json.loads(await asyncio.to_thread(sys.stdin.readline))]
        async with Audience(log, ids).reading() as audience:
            heard, cpu = bell.rings(Channel.LOG), time.process_time()
            print("reading", flush=True)
        rings, cpu = bell.rings(Channel.LOG) - heard, time.process_time() - cpu
        print(json.dumps({"ages": audience.ages, "cpu_seconds": cpu, "rings": rings}), flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def postgres_cpu(data_dir: Path) -> float:
    """Processor seconds of this private Postgres, of its processes that ended too."""
    total = 0.0
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and Path(process.cwd()).is_relative_to(data_dir):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        except psutil.Error:
            continue
    return total


async def commits(database: Database) -> int:
    await database.execute("SELECT pg_stat_force_next_flush()")
    number: int = await database.fetchval(
        "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    )
    return number


async def load(url: str, data_dir: Path, streams: int, seconds: float, *, across: bool) -> None:
    async with opened(url) as (database, log, _):
        writers = [await new_writer(database, log) for _ in range(streams)]
        ids = [writer.generation_id for writer in writers]
        command = (sys.executable, "-m", "benchmarks.stream_log", "--elsewhere", url)
        other = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 30
        )
        assert other.stdin
        assert other.stdout
        other.stdin.write(json.dumps([str(id_) for id_ in (ids if across else ids[:1])]).encode() + b"\n")
        await other.stdout.readline()
        async with Audience(log, ids[:1] if across else ids).reading() as here:
            before, postgres = await commits(database), postgres_cpu(data_dir)
            cpu, began = time.process_time(), time.monotonic()
            tokens = await speak(writers, seconds)
        told = json.loads(await other.stdout.readline())
        took, writing = time.monotonic() - began, time.process_time() - cpu
        await other.wait()
        seen = told["ages"] if across else here.ages
        assert len(seen) == tokens, f"{len(seen)} of {tokens} tokens were read"
        print(
            f"{'another process' if across else 'same process':<18}"
            f"{percentile(seen, 0.5):8.1f}{percentile(seen, 0.99):8.1f}{max(seen):8.1f}"
            f"{told['rings'] / took:12.1f}{(await commits(database) - before) / took:12.1f}"
            f"{writing / tokens * 1e6:12.1f}{(told['cpu_seconds'] / tokens * 1e6 if across else 0):12.1f}"
            f"{(postgres_cpu(data_dir) - postgres) / tokens * 1e6:12.1f}"
        )


async def first_tokens(url: str, count: int) -> list[float]:
    """Ages of lone first tokens, nothing else being written."""
    found = []
    async with opened(url) as (database, log, _):
        for _ in range(count):
            writer = await new_writer(database, log)
            async with aclosing(log.read(writer.generation_id, after=1)) as events:
                await writer.append(TextDelta(f"{time.monotonic():.6f}"))
                event = (await anext(events)).event
                now = time.monotonic()
            assert isinstance(event, TextDelta)
            found.append((now - float(event.text)) * 1000)
            await finish(writer)
    return found


async def conversation_of(database: Database, log: StreamLog, messages: int) -> UUID:
    """One that has this many messages, each below the one before it."""
    generation, started = await begin(database, log.owner)
    await finish(log.writer(generation.id, started, lambda: None))
    await database.execute(
        """
        WITH RECURSIVE turn(number, id, parent_id) AS (
            SELECT 1, gen_random_uuid(), $3::uuid
            UNION ALL SELECT number + 1, gen_random_uuid(), id FROM turn WHERE number < $4
        ), filled AS (
            INSERT INTO messages (id, viewer_id, conversation_id, parent_id, role, content, status)
            SELECT id, $1, $2, parent_id, CASE number % 2 WHEN 1 THEN 'user' ELSE 'assistant' END,
                   repeat('word ', 40), 'completed'
            FROM turn ORDER BY number RETURNING id
        )
        UPDATE conversations SET head_id = (SELECT id FROM turn WHERE number = $4) WHERE id = $2
        """,
        VIEWER,
        generation.conversation_id,
        generation.message_id,
        messages - 2,
    )
    await database.execute("VACUUM ANALYZE messages")
    return generation.conversation_id


async def cost(database: Database, log: StreamLog, conversation_id: UUID, tokens: int) -> float:
    """Microseconds from one token's append to its reading, on average, each awaited before the next."""
    writer = await new_writer(database, log, conversation_id)
    async with aclosing(log.read(writer.generation_id, after=1)) as events:
        await writer.append(TextDelta("first "))
        await anext(events)
        began = time.perf_counter()
        for _ in range(tokens):
            await writer.append(TextDelta("word "))
            log.wake(urgent=True)  # or every token would wait for its group, and hide what it costs
            await anext(events)
        took = time.perf_counter() - began
    await finish(writer)
    return took / tokens * 1e6


async def lengths(url: str, rounds: int, tokens: int) -> None:
    async with opened(url) as (database, log, _):
        short, long = await conversation_of(database, log, 10), await conversation_of(database, log, 10_000)
        costs: dict[UUID, list[float]] = {short: [], long: []}
        for _ in range(rounds):
            for conversation_id, measured in costs.items():
                measured.append(await cost(database, log, conversation_id, tokens))
    for name, id_ in (("10", short), ("10,000", long)):
        print(f"{name:<18}{statistics.median(costs[id_]):8.0f}{min(costs[id_]):8.0f}{max(costs[id_]):8.0f}")
    print(f"ratio {statistics.median(costs[long]) / statistics.median(costs[short]):.3f}")


async def measure(streams: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="parley-") as data_dir:
        async with embedded_postgres(Path(data_dir)) as url:
            await migrate(url)
            lone = await first_tokens(url, 50)
            print("a lone first token, ms:", end=" ")
            print(f"p50 {statistics.median(lone):.1f}, p99 {percentile(lone, 0.99):.1f}\n")
            print(
                f"{streams} streams of {TOKENS_PER_SECOND} tokens/s for {seconds:g} s, token to reader, ms;"
            )
            print(
                "processor time per token, µs, of the writing process (and its readers), the other, Postgres"
            )
            print(
                f"{'readers in':<18}{'p50':>8}{'p99':>8}{'max':>8}{'rings/s':>12}{'commits/s':>12}"
                f"{'writing':>12}{'reading':>12}{'Postgres':>12}"
            )
            await load(url, Path(data_dir), streams, seconds, across=False)
            await load(url, Path(data_dir), streams, seconds, across=True)
            print("\none token written and read, µs, by the conversation's length in messages")
            print(f"{'messages':<18}{'median':>8}{'min':>8}{'max':>8}")
            await lengths(url, rounds=9, tokens=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--elsewhere", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.elsewhere:
        uvloop.run(elsewhere(arguments.elsewhere))
    else:
        uvloop.run(measure(arguments.streams, arguments.seconds))


if __name__ == "__main__":
    main()
