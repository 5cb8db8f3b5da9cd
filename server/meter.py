"""What each attempt at a reply took: tokens, first token, duration."""

import time
from datetime import UTC, datetime, timedelta
from typing import assert_never

from db.usage import Attempt, Usage
from providers.base import UsageReport
from providers.router import Route
from server.events import Completed, Failed, Stopped, Terminal


class Meter:
    """Runs from its making until ``attempt``. ``earlier`` has the attempts of models that failed."""

    def __init__(self, route: Route) -> None:
        self.earlier: list[Attempt] = []
        self._begin(route)

    def _begin(self, route: Route) -> None:
        self._route = route
        self._started_at = datetime.now(UTC)
        self._started = time.perf_counter()
        self._first_token_seconds: float | None = None
        self._deltas = 0
        self._report = UsageReport(None, None)

    def switch(self, route: Route, failed: Failed) -> None:
        """The attempt has ended, and another model is asked now."""
        self.earlier.append(self.attempt(failed))
        self._begin(route)

    def delta(self) -> None:
        if self._first_token_seconds is None:
            self._first_token_seconds = time.perf_counter() - self._started
        self._deltas += 1

    def report(self, report: UsageReport) -> None:
        self._report = report

    def attempt(self, terminal: Terminal) -> Attempt:
        """The attempt as it is recorded, ended now by ``terminal``."""
        duration = time.perf_counter() - self._started
        first = self._first_token_seconds
        return Attempt(
            number=len(self.earlier) + 1,
            provider=self._route.provider_name,
            model=self._route.full_name,
            started_at=self._started_at,
            first_token_at=None if first is None else self._started_at + timedelta(seconds=first),
            finished_at=self._started_at + timedelta(seconds=duration),
            outcome=outcome(terminal),
            error_code=terminal.code.value if isinstance(terminal, Failed) else None,
            usage=self._usage(None if first is None else first * 1000, duration * 1000),
        )

    def _usage(self, first_token_ms: float | None, duration_ms: float) -> Usage:
        """What the provider did not report, because the reply was cut short, is counted in deltas, of which
        a model sends one per token."""
        prompt, completion = self._report.prompt_tokens, self._report.completion_tokens
        if completion is not None:
            return Usage(prompt, completion, "provider", first_token_ms, duration_ms)
        source = "estimated" if prompt is None else "mixed"
        return Usage(prompt, self._deltas, source, first_token_ms, duration_ms)


def outcome(terminal: Terminal) -> str:
    """The word that generations, messages and attempts keep for how they ended."""
    match terminal:
        case Completed():
            return "completed"
        case Stopped():
            return "stopped"
        case Failed():
            return terminal.outcome
        case _:
            assert_never(terminal)
