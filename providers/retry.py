"""Asks the same model again, as long as nothing of its reply has come and another try may help."""

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from providers.base import (
    ChatRequest,
    Finished,
    Phase,
    PhaseChanged,
    ProviderEvent,
    ReasoningDelta,
    TextDelta,
    UsageReport,
)
from providers.errors import ProviderError

_log = logging.getLogger(__name__)

Stream = Callable[[ChatRequest], AsyncGenerator[ProviderEvent, None]]


@dataclass(frozen=True, slots=True)
class Retries:
    """``attempts`` are those after the first try. Before the first of them ``delay_seconds`` pass, before
    each further one twice as long as before the last, but never more than ``longest_wait_seconds``.

    Who says when to come back is not asked sooner; who wants to be left alone for longer than
    ``longest_wait_seconds`` is not asked again. ``jitter``, from 0 to 1, lengthens every wait by up to a
    half of it, so that those who failed together do not come back together.
    """

    attempts: int
    delay_seconds: float = 1.0
    longest_wait_seconds: float = 30.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random

    def wait_seconds(self, error: ProviderError, tried: int) -> float | None:
        """How long to wait after so many tries, the last ended by ``error``; ``None``: it was the last."""
        asked_for = error.retry_after_seconds or 0.0
        if not error.retries or tried > self.attempts or asked_for > self.longest_wait_seconds:
            return None
        delay = min(self.delay_seconds * 2.0 ** (tried - 1), self.longest_wait_seconds)
        return max(delay, asked_for) * (1 + self.jitter() / 2)


NO_RETRIES = Retries(attempts=0)


@dataclass(frozen=True, slots=True)
class Retrying:
    """``ask`` with retries: ``stream`` has its shape, and raises what its last try raised."""

    ask: Stream
    retries: Retries

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        """From the first delta on a failure is final: another try could not take up where this one ended."""
        for tried in itertools.count(1):
            has_begun = False
            try:
                async with aclosing(self.ask(request)) as events:
                    async for event in events:
                        has_begun = has_begun or isinstance(event, TextDelta | ReasoningDelta | Finished)
                        yield event
                return
            except ProviderError as error:
                wait_seconds = None if has_begun else self.retries.wait_seconds(error, tried)
                if wait_seconds is None:
                    raise
                again = self._again(error, tried, wait_seconds)
            _log.warning("model %s: %s", request.model, again)
            yield PhaseChanged(Phase.RETRYING, again)
            await self.retries.sleep(wait_seconds)
            yield UsageReport(None, None)  # in place of what the failed try may have reported

    def _again(self, error: ProviderError, tried: int, wait_seconds: float) -> str:
        tries = f"try {tried + 1} of {self.retries.attempts + 1}"
        return f"trying again in {wait_seconds:.2g} s ({tries}): {error.message}"
