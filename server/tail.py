"""The newest part of one generation's log in memory, and the wake-up of those who wait at its end."""

import asyncio
from collections.abc import Iterable

from db.database import DatabaseUnavailable
from server.events import LoggedEvent

_KEPT = 512


class Tail:
    """Everything that follows number ``start``, without gaps; what is old is let go in time.

    ``changed`` is replaced when it is set, so look first and wait then, with nothing awaited in between.
    """

    def __init__(self, start: int) -> None:
        self._start = start
        self._events: list[LoggedEvent] = []
        self._is_closed = False
        self._is_lost = False
        self.changed = asyncio.Event()

    @property
    def end(self) -> int:
        """The last number that it has, or would follow."""
        return self._start + len(self._events)

    def publish(self, events: Iterable[LoggedEvent]) -> None:
        """Each with the number after the one before it."""
        self._events.extend(events)
        if len(self._events) > 2 * _KEPT:
            self._start += len(self._events) - _KEPT
            del self._events[:-_KEPT]
        self._wake()

    def close(self, *, is_lost: bool = False) -> None:
        """Nothing more comes here. ``is_lost``: nor can the database say what came."""
        self._is_closed = True
        self._is_lost = is_lost
        self._wake()

    def following(self, seq: int) -> list[LoggedEvent] | None:
        """What follows ``seq`` so far, or None where the database has to be asked. Raises
        DatabaseUnavailable when it need not be."""
        if seq < self._start:
            return None
        events = self._events[seq - self._start :]
        if self._is_closed and not events:
            if self._is_lost:
                raise DatabaseUnavailable("the database was away for too long to tell how the reply goes on")
            return None
        return events

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()
