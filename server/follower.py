"""Follows what other processes write: one query for all that is read here, each time the bell rings."""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Never
from uuid import UUID

from msgspec import DecodeError

from db import generation_log, generations
from db.bell import Bell, Channel
from db.database import Database, DatabaseError
from db.generation_log import LogRow
from server.events import Terminal
from server.log_rows import to_events
from server.tail import Tail

_log = logging.getLogger("parley.follower")


@dataclass(slots=True)
class _Followed:
    tail: Tail
    contact: float  # when the database last answered for it
    readers: int = 0


class Follower:
    """Keeps a tail for every generation that somebody reads here and another process writes.

    A dead bell costs ``poll_seconds``: so often it looks without being rung for, and closes the tails of
    what ended or was deleted. A tail is lost after ``patience_seconds`` without the database.
    """

    def __init__(
        self, database: Database, bell: Bell, *, poll_seconds: float, patience_seconds: float, rows: int
    ) -> None:
        self._database = database
        self._bell = bell
        self._poll_seconds = poll_seconds
        self._patience_seconds = patience_seconds
        self._rows = rows
        self._followed: dict[UUID, _Followed] = {}
        self._is_read = asyncio.Event()
        self._is_due = asyncio.Event()

    @contextmanager
    def following(self, generation_id: UUID, start: int) -> Iterator[Tail]:
        """A tail that is kept up. ``start`` is a number that is stored already."""
        followed = self._followed.setdefault(generation_id, _Followed(Tail(start), time.monotonic()))
        followed.readers += 1
        self._is_read.set()
        self._is_due.set()  # what came after the reader last looked was rung for before it listened
        try:
            yield followed.tail
        finally:
            followed.readers -= 1
            if not followed.readers:
                self._forget(generation_id, followed)

    async def listen(self) -> Never:
        """Have a look taken at each ring; nothing is asked while nobody reads here."""
        heard = self._bell.rings(Channel.LOG)
        while True:
            await self._is_read.wait()
            heard = await self._bell.wait(Channel.LOG, heard, at_most_seconds=self._poll_seconds)
            self._is_due.set()

    async def keep(self) -> Never:
        """Publish what others stored, for as long as it is not cancelled."""
        checked = time.monotonic()
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            try:
                await self._fetch()
                if time.monotonic() - checked >= self._poll_seconds:
                    await self._close_ended()
                    checked = time.monotonic()
            except DatabaseError as error:
                _log.warning(
                    "%d streams of other servers wait for the database: %s", len(self._followed), error
                )
                self._close_lost()

    async def _fetch(self) -> None:
        ends = {generation_id: followed.tail.end for generation_id, followed in self._followed.items()}
        rows = await generation_log.events_of_many(self._database, ends, self._rows)
        contact = time.monotonic()
        for followed in self._followed.values():
            followed.contact = contact
        for generation_id, group in groupby(rows, lambda row: row.generation_id):
            self._publish(generation_id, list(group))

    def _publish(self, generation_id: UUID, rows: Sequence[LogRow]) -> None:
        if len(rows) == self._rows:
            self._is_due.set()  # there may be more
        # Its last reader may have gone meanwhile, and another come, whose tail starts elsewhere.
        followed = self._followed.get(generation_id)
        if followed is None or not rows[0].seq <= followed.tail.end + 1 <= rows[-1].seq:
            return
        try:
            events = to_events(row for row in rows if row.seq > followed.tail.end)
        except DecodeError:
            self._close([generation_id])  # a newer version wrote it; its readers come upon that themselves
        else:
            followed.tail.publish(events)
            if isinstance(events[-1].event, Terminal):
                self._close([generation_id])  # for readers that asked for more than there is

    async def _close_ended(self) -> None:
        ids = list(self._followed)
        running = await generations.running(self._database, ids)
        self._close(set(ids) - running)

    def _close_lost(self) -> None:
        since = time.monotonic() - self._patience_seconds
        lost = [id_ for id_, followed in self._followed.items() if followed.contact < since]
        self._close(lost, is_lost=True)

    def _close(self, ids: Iterable[UUID], *, is_lost: bool = False) -> None:
        """Readers that are at the end look in the database themselves; those who come get a new tail."""
        for generation_id in list(ids):
            if followed := self._followed.get(generation_id):
                followed.tail.close(is_lost=is_lost)
                self._forget(generation_id, followed)

    def _forget(self, generation_id: UUID, followed: _Followed) -> None:
        if self._followed.get(generation_id) is followed:
            del self._followed[generation_id]
        if not self._followed:
            self._is_read.clear()
