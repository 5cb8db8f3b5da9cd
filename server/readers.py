"""Tells all replicas who reads here, of generations that are to stop without readers."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Never
from uuid import uuid4

from db import readers
from db.database import Database, DatabaseError
from db.generations import Generation
from db.readers import Reader

_log = logging.getLogger("parley.readers")


class Readers:
    """A reader that unsubscribes counts no more at once; one that was lost, after ``absence_seconds``."""

    def __init__(self, database: Database, *, absence_seconds: float, retry_seconds: float) -> None:
        self._database = database
        self._absence_seconds = absence_seconds
        self._retry_seconds = retry_seconds
        self._present: set[Reader] = set()
        self._arrived: set[Reader] = set()
        self._lost: set[Reader] = set()
        self._left: set[Reader] = set()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Readers"]:
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self._keep())
            try:
                yield self
            finally:
                keeping.cancel()

    @contextmanager
    def present(self, generation: Generation, has_unsubscribed: Callable[[], bool]) -> Iterator[None]:
        """Somebody reads the generation while the context lasts. ``has_unsubscribed`` says at its end whether
        that was on purpose."""
        if not generation.stops_without_readers:
            yield
            return
        reader = Reader(uuid4(), generation.id)
        self._present.add(reader)
        self._arrived.add(reader)
        self._changed.set()
        try:
            yield
        finally:
            self._present.discard(reader)
            self._arrived.discard(reader)
            (self._left if has_unsubscribed() else self._lost).add(reader)
            self._changed.set()

    async def _keep(self) -> Never:
        """Tell of each change at once, and four times an absence that those who are here still are, however
        many come and go in between."""
        told_at = time.monotonic()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(told_at + self._absence_seconds / 4 - time.monotonic()):
                    await self._changed.wait()
            self._changed.clear()
            if time.monotonic() - told_at >= self._absence_seconds / 4:
                told_at = time.monotonic()
                self._arrived |= self._present
            try:
                await self._tell()
            except DatabaseError as error:
                _log.warning("readers could not be noted: %s", error)
                self._changed.set()
                await asyncio.sleep(self._retry_seconds)

    async def _tell(self) -> None:
        gone = self._left.copy()  # before those who are here, so that none who came first is overlooked
        if here := self._arrived | self._lost:
            await readers.renew(self._database, here, self._absence_seconds)
            self._arrived -= here
            self._lost -= here
        if gone:
            await readers.leave(self._database, gone)
            self._left -= gone
