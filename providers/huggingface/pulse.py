"""Wakes everybody who waits, then can be waited for again."""

import asyncio


class Pulse:
    def __init__(self) -> None:
        self._next = asyncio.Event()

    def beat(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self) -> None:
        """Until the next beat. Look at what it is about first, with no ``await`` in between."""
        await self._next.wait()
