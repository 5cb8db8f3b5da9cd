"""What a worker says about one request, until its reader takes it."""

import asyncio
from collections import deque

from providers.huggingface.protocol import Delta, Done, Failed, Started, Usage

Letter = Started | Delta | Usage | Done | Failed


class Mailbox:
    """For one reader. A reader that lags gets neighbouring deltas as one, so that the worker never waits for
    it, and what is held is never more than the reply itself."""

    def __init__(self) -> None:
        self._letters: deque[Letter] = deque()
        self._text: list[str] = []  # of the delta at the end, not yet joined
        self._arrived = asyncio.Event()

    def put(self, letter: Letter) -> None:
        if isinstance(letter, Delta):
            if not self._text:
                self._letters.append(letter)
            self._text.append(letter.text)
        else:
            self._join()
            self._letters.append(letter)
        self._arrived.set()

    def wake(self) -> None:
        """Lets the reader look again for another reason than a letter."""
        self._arrived.set()

    def take(self) -> Letter | None:
        if len(self._letters) == 1:
            self._join()
        return self._letters.popleft() if self._letters else None

    async def wait(self) -> None:
        """Until ``put`` or ``wake`` was called since the last wait."""
        await self._arrived.wait()
        self._arrived.clear()

    def _join(self) -> None:
        if self._text:
            self._letters[-1] = Delta(self._letters[-1].id or 0, "".join(self._text))
            self._text.clear()
