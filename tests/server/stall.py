"""A Postgres that stops in the middle of everything, and goes on where it was."""

import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from db.database import Database, PoolLimits


@asynccontextmanager
async def stalled(url: str) -> AsyncGenerator[None]:
    """None of the connections that the database has now gets an answer, and none is lost."""
    async with Database.open(url, PoolLimits(max_size=1)) as database:
        rows = await database.fetch(
            """
            SELECT pid FROM pg_stat_activity
            WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
            """
        )
    pids = [row["pid"] for row in rows]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
