"""The wake-up between replicas: one LISTEN connection, checked and replaced, that carries no data."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn, Self

import asyncpg

from db.database import Connection, DatabaseError, connecting, translated

_logger = logging.getLogger(__name__)

APPLICATION_NAME = "parley-bell"  # the LISTEN connection's, in pg_stat_activity


class Channel(StrEnum):
    """What may have changed; where, only the tables say."""

    LOG = "parley_log"  # rows were added to generations' logs
    STOP = "parley_stop"  # somebody asked for a generation to stop
    CONVERSATIONS = "parley_conversations"  # one changed, went, or a reply began or ended in it


async def ring(connection: Connection, *channels: Channel) -> None:
    """Within a transaction: heard when it commits, once however often it was rung in it."""
    await connection.execute("SELECT pg_notify(channel, '') FROM unnest($1::text[]) channel", channels)


@dataclass(frozen=True, slots=True)
class BellLimits:
    """A dead connection is noticed ``check_every`` and ``check_timeout`` after its last sign of life. The
    delay before the next attempt doubles from the first to the longest, until a connection passes a check."""

    connect_timeout_seconds: float = 5.0
    check_every_seconds: float = 5.0
    check_timeout_seconds: float = 2.0
    first_delay_seconds: float = 0.25
    longest_delay_seconds: float = 4.0


class Bell:
    """Counts the rings of every channel. To miss none: read ``rings``, look at the tables, then ``wait`` for
    the count to differ from what was read."""

    def __init__(self, url: str, limits: BellLimits) -> None:
        self._url = url
        self._limits = limits
        self._delay_seconds = limits.first_delay_seconds
        self._is_lost = False
        self._rings = dict.fromkeys(Channel, 0)
        self._rung = {channel: asyncio.Event() for channel in Channel}  # each is replaced when it rings

    @classmethod
    @asynccontextmanager
    async def listening(cls, url: str, limits: BellLimits | None = None) -> AsyncGenerator[Self]:
        """Listen for as long as the context lasts. It is entered at once, and the first connection counts as
        a ring like every later one; while there is none, those who wait live from their own time limit."""
        bell = cls(url, limits or BellLimits())
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(bell._keep_listening())
            try:
                yield bell
            finally:
                keeping.cancel()

    def rings(self, channel: Channel) -> int:
        """How often it has rung, or may have: a new connection counts as one ring of every channel."""
        return self._rings[channel]

    async def wait(self, channel: Channel, heard: int, *, at_most_seconds: float) -> int:
        """Return ``rings(channel)`` as soon as it differs from ``heard``, or when the time is over."""
        if self._rings[channel] == heard:
            with suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
                async with asyncio.timeout(at_most_seconds):
                    await self._rung[channel].wait()
        return self._rings[channel]

    def _ring(self, channel: Channel) -> None:
        self._rings[channel] += 1
        self._rung[channel].set()
        self._rung[channel] = asyncio.Event()

    def _hear(self, _connection: object, _pid: object, channel: str, _payload: object) -> None:
        self._ring(Channel(channel))

    async def _keep_listening(self) -> NoReturn:
        while True:
            try:
                await self._listen()
            except DatabaseError as error:
                if not self._is_lost:
                    _logger.warning("no wake-up from other replicas, polling until it is back: %s", error)
                self._is_lost = True
            await asyncio.sleep(self._delay_seconds)
            self._delay_seconds = min(2 * self._delay_seconds, self._limits.longest_delay_seconds)

    async def _listen(self) -> NoReturn:
        """Raises DatabaseError when there is no connection, or no longer."""
        with connecting():
            connection = await asyncpg.connect(
                self._url,
                timeout=self._limits.connect_timeout_seconds,
                command_timeout=self._limits.check_timeout_seconds,
                server_settings={"application_name": APPLICATION_NAME},
            )
        try:
            closed = asyncio.Event()
            connection.add_termination_listener(lambda _: closed.set())
            with translated():
                for channel in Channel:
                    await connection.add_listener(channel, self._hear)
                for channel in Channel:
                    self._ring(channel)  # what was committed before the LISTEN went unheard
                while True:
                    await self._check(connection, closed)
        finally:
            connection.terminate()  # a close would wait for the answer of a server that may be gone

    async def _check(self, connection: "asyncpg.Connection[asyncpg.Record]", closed: asyncio.Event) -> None:
        """One round trip after the interval; at once, and in vain, when the connection closes before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.check_every_seconds):
                await closed.wait()
        await connection.execute("SELECT 1")
        # Only now, so that a connection that breaks again and again is neither hurried nor logged each time.
        self._delay_seconds = self._limits.first_delay_seconds
        if self._is_lost:
            _logger.info("wake-ups from other replicas are back")
            self._is_lost = False
