"""Waiting for a database that is away."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from db.database import DatabaseUnavailable

T = TypeVar("T")


async def patiently(ask: Callable[[], Awaitable[T]], *, patience_seconds: float, retry_seconds: float) -> T:
    """What ``ask`` returns, asked again for as long as the database cannot be reached. For what may happen
    twice: whether it did is not known. Raises DatabaseUnavailable when the patience is over."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return await ask()
        except DatabaseUnavailable:
            if time.monotonic() >= deadline:
                raise
            await asyncio.sleep(retry_seconds)
