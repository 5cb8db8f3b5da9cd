"""Forgets how old replies came about; what they say is in their messages."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Never

from db import generation_log
from db.database import Database, DatabaseError

_log = logging.getLogger("parley.purge")


class Purge:
    """Deletes the logs of generations that ended ``retention_seconds`` ago, ``batch`` at a time, so that no
    statement holds up others. Of several processes one does it at a time."""

    def __init__(
        self, database: Database, *, retention_seconds: float, every_seconds: float = 60.0, batch: int = 100
    ) -> None:
        self._database = database
        self._retention_seconds = retention_seconds
        self._every_seconds = every_seconds
        self._batch = batch

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Purge"]:
        async with asyncio.TaskGroup() as tasks:
            purging = tasks.create_task(self._purge_for_ever())
            try:
                yield self
            finally:
                purging.cancel()

    async def once(self) -> int:
        """Delete all that is due, and return of how many generations."""
        total = 0
        while purged := await generation_log.purge(
            self._database, ended_seconds_ago=self._retention_seconds, generations=self._batch
        ):
            total += purged
        return total

    async def _purge_for_ever(self) -> Never:
        while True:
            try:
                if purged := await self.once():
                    _log.info("purged the logs of %d replies", purged)
            except DatabaseError as error:
                _log.warning("old logs could not be purged: %s", error)
            await asyncio.sleep(self._every_seconds)
