"""What holds every provider's reply to the contract."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from providers import errors
from providers.base import (
    Finished,
    FinishReason,
    Phase,
    PhaseChanged,
    ProviderEvent,
    ReasoningDelta,
    TextDelta,
    UsageReport,
)
from providers.errors import NextCandidate, ProviderError, Rejected, StreamBroken, TimedOut, Unavailable
from providers.reply import ReplyLimits, complete_reply
from tests.providers.conftest import outcome

LIMITS = ReplyLimits(first_token_seconds=0.1, silence_seconds=0.05)
DONE = Finished(FinishReason.STOP)


class Adapter:
    """Yields what it is given, waits where that is None, raises what is an error."""

    def __init__(self, *acts: ProviderEvent | ProviderError | None) -> None:
        self.acts = acts
        self.closed = False

    async def events(self) -> AsyncGenerator[ProviderEvent, None]:
        try:
            for act in self.acts:
                match act:
                    case None:
                        await asyncio.Event().wait()
                    case ProviderError():
                        raise act
                    case _:
                        yield act
        finally:
            self.closed = True

    async def outcome(self) -> tuple[list[ProviderEvent], ProviderError | None]:
        return await outcome(complete_reply(self.events(), LIMITS, "Test"))


def every_error() -> list[type[ProviderError]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, ProviderError)]


@pytest.mark.parametrize("kind", every_error())
@pytest.mark.parametrize("delta", [TextDelta("x"), ReasoningDelta("x")])
async def test_error_after_a_delta_is_for_no_other_candidate(
    kind: type[ProviderError], delta: TextDelta | ReasoningDelta
) -> None:
    seen, error = await Adapter(delta, kind("why")).outcome()
    assert seen == [delta]
    assert isinstance(error, Rejected | StreamBroken)
    assert error.next_candidate in (NextCandidate.NO, NextCandidate.IF_RESTART)
    assert error.message == "why"


@pytest.mark.parametrize("kind", every_error())
async def test_error_before_a_delta_stays_itself(kind: type[ProviderError]) -> None:
    _, error = await Adapter(PhaseChanged(Phase.WAITING), kind("why", retry_after_seconds=2)).outcome()
    assert type(error) is kind
    assert error.retry_after_seconds == 2


@pytest.mark.parametrize(
    ("begun", "expected", "says"),
    [
        ((), TimedOut, "sent no token within 0.1 s"),
        ((PhaseChanged(Phase.WAITING), UsageReport(1, None)), TimedOut, "sent no token within 0.1 s"),
        ((ReasoningDelta("x"),), StreamBroken, "sent nothing for 0.05 s"),
    ],
)
async def test_silence(begun: tuple[ProviderEvent, ...], expected: type[ProviderError], says: str) -> None:
    adapter = Adapter(*begun, None)
    seen, error = await adapter.outcome()
    assert seen == list(begun)
    assert type(error) is expected
    assert error.message == f"Test {says}"
    assert adapter.closed


@pytest.mark.parametrize(("begun", "expected"), [((), Unavailable), ((TextDelta("x"),), StreamBroken)])
async def test_end_without_marker(begun: tuple[ProviderEvent, ...], expected: type[ProviderError]) -> None:
    _, error = await Adapter(*begun).outcome()
    assert type(error) is expected


@pytest.mark.parametrize(
    "after", [None, Unavailable("late"), TextDelta("late")], ids=["silence", "error", "text"]
)
async def test_nothing_counts_after_the_end(after: ProviderEvent | ProviderError | None) -> None:
    adapter = Adapter(TextDelta("x"), DONE, after)
    assert await adapter.outcome() == ([TextDelta("x"), DONE], None)
    assert adapter.closed


async def test_empty_reply_is_one() -> None:
    assert await Adapter(DONE).outcome() == ([DONE], None)


async def test_a_slow_reader_is_not_silence() -> None:
    """The limits run while the provider is waited for, not while its reader is busy."""
    events = complete_reply(Adapter(TextDelta("x"), TextDelta("y"), DONE).events(), LIMITS, "Test")
    seen = [await anext(events)]
    await asyncio.sleep(0.1)
    seen += [await anext(events), await anext(events)]
    assert seen == [TextDelta("x"), TextDelta("y"), DONE]
    await events.aclose()


async def test_closing_closes_the_adapter() -> None:
    adapter = Adapter(TextDelta("x"), None)
    events = complete_reply(adapter.events(), LIMITS, "Test")
    await anext(events)
    await events.aclose()
    assert adapter.closed
