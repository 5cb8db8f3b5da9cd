"""The log of every generation: written in group commits, read by everybody who watches."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Never, TypeAlias
from uuid import UUID

from db import generation_log
from db.bell import Bell
from db.database import Conflict, Database, DatabaseError, DatabaseUnavailable
from db.generation_log import Ending, LogRow
from db.usage import Attempt
from providers.base import Phase
from server.errors import ErrorCode
from server.events import Delta, Failed, LoggedEvent, ModelSwitched, PhaseChanged, Started, Terminal
from server.follower import Follower
from server.leases import Leases
from server.log_rows import to_ending, to_events, to_rows
from server.patience import patiently
from server.pending import Pending
from server.tail import Tail

_log = logging.getLogger("parley.stream_log")
MakeEnding: TypeAlias = Callable[[Sequence[LogRow]], Ending]

_REFUSED = "the database does not take what the model said; the text before it is kept"
_FINISHING = 4  # at once; the pool has connections left for the commits


@dataclass(frozen=True, slots=True)
class LogTiming:
    """How patient the log is. ``flush``: from one commit to the next, at least. ``poll``: the net under
    the bell, for what another process writes. ``patience``: how long the database may be away before a
    stream fails."""

    flush_seconds: float = 0.02
    lease_seconds: float = 10.0
    poll_seconds: float = 1.0
    retry_seconds: float = 0.25
    patience_seconds: float = 90.0
    buffer_characters: int = 256_000
    read_rows: int = 500


class Writer:
    """One generation's end of the log."""

    def __init__(self, log: "StreamLog", generation_id: UUID, abort: Callable[[], None]) -> None:
        self._log = log
        self._room = asyncio.Event()
        self._room.set()
        self._streaming = False
        self.generation_id = generation_id
        self.pending = Pending(generation_id, last_seq=1)
        self.status: str | None = None
        self.closing = False  # from then on only the commit that closes the generation takes its events
        self.is_refused = False  # the database will never take what is pending
        self.abort = abort

    async def append(self, event: PhaseChanged | ModelSwitched | Delta) -> None:
        """Hand over an event; it is shown once it is stored.

        Waits while the buffer is full. Raises DatabaseUnavailable when it stays so for the log's patience.
        """
        await self._wait_for_room()
        if isinstance(event, PhaseChanged | ModelSwitched):
            self.pending.add(event)
            self.status = (event.phase if isinstance(event, PhaseChanged) else Phase.RETRYING).value
            self._streaming = False
            self._log.wake(urgent=True)
            return
        self.pending.add_delta(event)
        if self.pending.characters >= self._log.timing.buffer_characters:
            self._room.clear()
        self._log.wake(urgent=not self._streaming)
        if not self._streaming:
            self.status = "streaming"
            self._streaming = True

    async def finish(self, terminal: Terminal, attempt: Attempt, earlier: Sequence[Attempt] = ()) -> None:
        """Store what waits, the terminal event, the message and the usage of ``attempt`` and of those that
        failed before it, in one commit.

        Does not raise: when the database stays away for the log's patience, or the generation is no longer
        ours, its end is left to whoever has the lease.
        """
        self.closing = True
        if self.is_refused:
            self.pending.discard()
            terminal = Failed("failed", ErrorCode.INTERNAL, _REFUSED, retryable=False)
            attempt = replace(attempt, outcome=terminal.outcome, error_code=terminal.code.value)
        self.pending.add(terminal)
        await self._log.finish(self, partial(to_ending, terminal, attempt, earlier=earlier))

    def stored(self) -> None:
        self.pending.stored()
        self._room.set()

    async def _wait_for_room(self) -> None:
        try:
            async with asyncio.timeout(self._log.timing.patience_seconds):
                await self._room.wait()
        except TimeoutError:
            raise DatabaseUnavailable("the database was away for too long to keep the reply") from None


class StreamLog:
    """All generations of this process share one commit at a time; see ``writer`` and ``read``."""

    def __init__(self, database: Database, bell: Bell, owner: UUID, timing: LogTiming | None = None) -> None:
        self.owner = owner
        self.timing = timing or LogTiming()
        self._database = database
        self._writers: dict[UUID, Writer] = {}
        self._tails: dict[UUID, Tail] = {}
        self._news = asyncio.Event()
        self._urgent = asyncio.Event()
        self._committing = asyncio.Lock()
        self._finishing = asyncio.Semaphore(_FINISHING)
        self._give_up_at = math.inf
        self._follower = Follower(
            database,
            bell,
            poll_seconds=self.timing.poll_seconds,
            patience_seconds=self.timing.patience_seconds,
            rows=self.timing.read_rows,
        )
        self._leases = Leases(
            database,
            bell,
            owner,
            lease_seconds=self.timing.lease_seconds,
            running=self._writers.keys,
            stop=self._stop,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["StreamLog"]:
        """Commit, keep leases and follow what others write, for as long as the context lasts."""
        async with asyncio.TaskGroup() as tasks:
            lasting = (
                self._commit_for_ever(),
                self._leases.keep(),
                self._leases.listen(),
                self._follower.keep(),
                self._follower.listen(),
            )
            jobs = [tasks.create_task(job) for job in lasting]
            try:
                yield self
            finally:
                for job in jobs:
                    job.cancel()

    def writer(self, generation_id: UUID, started: Started, abort: Callable[[], None]) -> Writer:
        """The log's end for a generation that this process owns and whose first row is stored. ``abort`` is
        called when somebody asked for it to stop, or when it is no longer ours to write."""
        writer = self._writers[generation_id] = Writer(self, generation_id, abort)
        tail = self._tails[generation_id] = Tail(0)
        tail.publish([LoggedEvent(generation_id, 1, 1, started)])
        return writer

    async def read(self, generation_id: UUID, after: int = 0) -> AsyncGenerator[LoggedEvent, None]:
        """Everything that follows number ``after``: what is stored first, then more as it is stored. Ends
        with the terminal event, which a generation that has ended always answers, whatever ``after`` is.

        Neighbouring deltas of a kind come merged when the reader lags; what was purged is left out. Raises
        NoSuchGeneration, and DatabaseUnavailable when the database stays away.
        """
        with ExitStack() as following:
            tail = self._tails.get(generation_id)
            while True:
                events = tail.following(after) if tail else None
                if events is None:
                    events, last = await patiently(
                        partial(self._stored, generation_id, after),
                        patience_seconds=self.timing.patience_seconds,
                        retry_seconds=self.timing.retry_seconds,
                    )
                    if not events:  # at the end of what another process writes
                        tail = following.enter_context(
                            self._follower.following(generation_id, min(after, last))
                        )
                        continue
                for event in _merged(events):
                    yield event
                    after = event.seq
                    if isinstance(event.event, Terminal):
                        return
                if not events and tail:
                    await tail.changed.wait()

    def wake(self, *, urgent: bool) -> None:
        """There is something to commit: at once, or with the next group."""
        self._news.set()
        if urgent:
            self._urgent.set()

    async def finish(self, writer: Writer, ending: MakeEnding) -> None:
        deadline = time.monotonic() + self.timing.patience_seconds
        async with self._committing:
            pass  # the commit that may hold this writer's events has ended, and the next leaves it out
        is_lost = False
        try:
            while not is_lost and not await self._try_to_finish(writer, ending):
                await asyncio.sleep(self.timing.retry_seconds)
                is_lost = time.monotonic() > min(deadline, self._give_up_at)
            if is_lost:
                _log.error("generation %s ends unrecorded: the database is away", writer.generation_id)
        finally:
            del self._writers[writer.generation_id]
            self._tails.pop(writer.generation_id).close(is_lost=is_lost)

    def give_up_after(self, seconds: float) -> None:
        """Wait no longer than that for a database that is away: this process is about to end."""
        self._give_up_at = time.monotonic() + seconds

    async def _try_to_finish(self, writer: Writer, ending: MakeEnding) -> bool:
        """False when it is worth another try."""
        async with self._finishing:
            events = writer.pending.take()
            try:
                ours = await generation_log.finish(self._database, self.owner, ending(to_rows(events)))
            except (DatabaseUnavailable, Conflict):
                return False
            except DatabaseError:
                _log.exception("generation %s could not be closed", writer.generation_id)
                return True
            if ours:
                self._publish(writer, events)
            else:
                _log.warning("generation %s was closed by another process", writer.generation_id)
            return True

    async def _commit_for_ever(self) -> Never:
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            await self._news.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._urgent.wait()
            self._news.clear()
            self._urgent.clear()
            due = clock() + self.timing.flush_seconds
            async with self._committing:
                reached = await self._commit(
                    [w for w in self._writers.values() if w.pending and not w.closing]
                )
            if not reached:
                await asyncio.sleep(self.timing.retry_seconds)
                self._news.set()

    async def _commit(self, writers: Sequence[Writer]) -> bool:
        """Store what these writers hold, then show it. False when it is worth another try."""
        if not writers:
            return True
        taken = [(writer, writer.pending.take()) for writer in writers]
        rows = [row for _, events in taken for row in to_rows(events)]
        statuses = {writer.generation_id: writer.status for writer in writers if writer.status}
        try:
            accepted = await generation_log.append(self._database, self.owner, rows, statuses)
        except (DatabaseUnavailable, Conflict) as error:
            _log.warning("%d streams wait for the database: %s", len(writers), error)
            return False
        except DatabaseError:
            if len(writers) > 1:  # what the database refuses of one must not hold up the others
                return all([await self._commit([writer]) for writer in writers])
            _log.exception("generation %s cannot be written", writers[0].generation_id)
            writers[0].is_refused = True
            accepted = set()
        for writer, events in taken:
            if writer.generation_id not in accepted:
                writer.abort()
                continue
            self._publish(writer, events)
            if writer.status == statuses.get(writer.generation_id):
                writer.status = None
        return True

    def _publish(self, writer: Writer, events: list[LoggedEvent]) -> None:
        self._tails[writer.generation_id].publish(events)
        writer.stored()

    def _stop(self, generation_id: UUID) -> None:
        if writer := self._writers.get(generation_id):
            writer.abort()

    async def _stored(self, generation_id: UUID, after: int) -> tuple[list[LoggedEvent], int]:
        """What the database has after that number, or else the terminal event if there will be no more; and
        the last number that there is."""
        if rows := await self._rows(generation_id, after):
            return to_events(rows), rows[-1].seq
        last, is_ended = await generation_log.last_row(self._database, generation_id)
        if is_ended:
            # It may have ended between the two statements, with more than its terminal event.
            rows = await self._rows(generation_id, after) if last.seq > after else [last]
        return to_events(rows), last.seq

    async def _rows(self, generation_id: UUID, after: int) -> list[LogRow]:
        return await generation_log.events(self._database, generation_id, after, self.timing.read_rows)


def _merged(events: Iterable[LoggedEvent]) -> Iterable[LoggedEvent]:
    """The same events, neighbouring deltas of a kind as one."""
    held: LoggedEvent | None = None
    for event in events:
        if held is None:
            held = event
        elif (
            isinstance(held.event, Delta)
            and isinstance(event.event, Delta)
            and type(held.event) is type(event.event)
        ):
            joined = type(held.event)(held.event.text + event.event.text)
            held = LoggedEvent(held.generation_id, held.from_seq, event.seq, joined)
        else:
            yield held
            held = event
    if held is not None:
        yield held
