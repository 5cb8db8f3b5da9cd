"""Asking again: when, how often, after how long, and what its reader sees of it (F1, P4, C7)."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from urllib.parse import urlsplit

import pytest

from providers.base import (
    ChatRequest,
    Finished,
    FinishReason,
    GenerationOptions,
    Phase,
    PhaseChanged,
    ProviderEvent,
    TextDelta,
    UsageReport,
)
from providers.errors import Overloaded, ProviderError, QuotaExceeded, StreamBroken, TimedOut, Unavailable
from providers.ollama import Ollama, OllamaSettings
from providers.registry import Registration, Registry
from providers.reply import ReplyLimits
from providers.retry import NO_RETRIES, Retries, Retrying
from providers.router import RoutedEvent, Router
from providers.scripted import Scripted
from tests.providers.conftest import chat, collect, outcome, text_of
from tests.providers.proxy import FaultProxy
from tests.providers.replay import ReplayServer, answer
from tests.providers.test_reply import every_error

DONE = Finished(FinishReason.STOP)
NOTHING_REPORTED = UsageReport(None, None)


class Sleeper:
    """Sleeps no time, and remembers how long it was asked to."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def sleeper() -> Sleeper:
    return Sleeper()


@pytest.fixture
def retries(sleeper: Sleeper) -> Retries:
    return Retries(3, delay_seconds=1, sleep=sleeper, jitter=lambda: 0.0)


@pytest.fixture
def scripted() -> Scripted:
    return Scripted(ReplyLimits(first_token_seconds=5, silence_seconds=5))


def again(seconds: str, tries: str, why: str) -> PhaseChanged:
    return PhaseChanged(Phase.RETRYING, f"trying again in {seconds} s (try {tries}): {why}")


def phases_of(events: Sequence[RoutedEvent]) -> list[Phase]:
    return [event.phase for event in events if isinstance(event, PhaseChanged)]


# --- how long


@pytest.mark.parametrize(("jitter", "factor"), [(0.0, 1.0), (1.0, 1.5)])
def test_waits_double_up_to_the_longest_and_are_lengthened_at_random(jitter: float, factor: float) -> None:
    retries = Retries(8, delay_seconds=1, longest_wait_seconds=30, jitter=lambda: jitter)
    waits = [retries.wait_seconds(Unavailable("why"), tried) for tried in range(1, 10)]
    assert waits == [*(factor * seconds for seconds in (1, 2, 4, 8, 16, 30, 30, 30)), None]


def test_waits_differ() -> None:
    retries = Retries(1, delay_seconds=1)
    waits = [retries.wait_seconds(Unavailable("why"), 1) or 0 for _ in range(100)]
    assert 1 <= min(waits) < 1.1
    assert 1.4 < max(waits) <= 1.5


@pytest.mark.parametrize(
    ("retry_after", "least"), [(0.2, 1.0), (1.5, 1.5), (30.0, 30.0), (30.1, None), (3600.0, None)]
)
def test_nobody_is_asked_sooner_than_it_says(retry_after: float, least: float | None) -> None:
    """And one that says too long is not asked again."""
    for jitter in (0.0, 0.5, 1.0):
        retries = Retries(3, delay_seconds=1, jitter=lambda: jitter)  # noqa: B023
        wait = retries.wait_seconds(Overloaded("busy", retry_after_seconds=retry_after), 1)
        assert wait == (least and least * (1 + jitter / 2))


def test_which_errors_are_worth_another_try() -> None:
    worth = {kind for kind in every_error() if Retries(1).wait_seconds(kind("why"), 1) is not None}
    assert worth == {Unavailable, Overloaded}


# --- what the reader sees


async def test_a_reply_that_succeeds_is_passed_on_as_it_is(retries: Retries, scripted: Scripted) -> None:
    script = chat("queue 1ms;reason Hm;words 3;usage 5 6;finish length")
    seen = await collect(Retrying(scripted.stream, retries).stream(script))
    assert seen == await collect(scripted.stream(script))


async def test_a_model_that_flaps_answers_at_the_second_try(
    retries: Retries, sleeper: Sleeper, scripted: Scripted
) -> None:
    seen = await collect(Retrying(scripted.stream, retries).stream(chat("flap overloaded;words 2")))
    why = "scripted: fails each odd time"
    assert seen[:2] == [again("1", "2 of 4", why), NOTHING_REPORTED]
    assert text_of(seen) == "w1 w2"
    assert seen[-1] == DONE
    assert sleeper.slept == [1]


async def test_the_last_failure_is_told_as_it_is(
    retries: Retries, sleeper: Sleeper, scripted: Scripted
) -> None:
    seen, error = await outcome(Retrying(scripted.stream, retries).stream(chat("wait 1ms;error unavailable")))
    assert phases_of(seen) == [Phase.WAITING, Phase.RETRYING] * 3 + [Phase.WAITING]
    assert [event for event in seen if isinstance(event, PhaseChanged)][-2] == again(
        "4", "4 of 4", "scripted: unavailable"
    )
    assert type(error) is Unavailable
    assert error.message == "scripted: unavailable"
    assert sleeper.slept == [1, 2, 4]
    assert (scripted.opened_streams, scripted.open_streams) == (4, 0)


@pytest.mark.parametrize(
    "script",
    ["text x;cut", "reason x;cut", "text x;garbage", "text x;error overloaded", "text x;end"],
)
async def test_what_has_begun_is_not_begun_again(retries: Retries, scripted: Scripted, script: str) -> None:
    seen, error = await outcome(Retrying(scripted.stream, retries).stream(chat(script)))
    assert type(error) is StreamBroken
    assert len(seen) == 1
    assert scripted.opened_streams == 1


class Tries:
    """``acts`` are what one try after the other yields; it raises where an error is among them."""

    def __init__(self, *acts: tuple[ProviderEvent | ProviderError, ...]) -> None:
        self._acts: Iterator[tuple[ProviderEvent | ProviderError, ...]] = iter(acts)
        self.open = 0

    async def stream(self, _: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        self.open += 1
        try:
            for act in next(self._acts):
                if isinstance(act, ProviderError):
                    raise act
                yield act
        finally:
            self.open -= 1


@pytest.mark.parametrize("event", [TextDelta("x"), DONE])
async def test_a_provider_that_ends_while_it_streams_is_not_asked_again(
    retries: Retries, event: ProviderEvent
) -> None:
    """A provider that is closed may end a reply that has begun with Unavailable."""
    tries = Tries((event, Unavailable("no longer in use")), (DONE,))
    seen, error = await outcome(Retrying(tries.stream, retries).stream(chat("m")))
    assert seen == [event]
    assert type(error) is Unavailable


async def test_the_usage_of_a_failed_try_is_void(retries: Retries) -> None:
    """Reports replace each other, so whoever keeps the last one is right."""
    tries = Tries((UsageReport(7, 1), Unavailable("broke")), (TextDelta("x"), DONE))
    seen = await collect(Retrying(tries.stream, retries).stream(chat("m")))
    reports = [event for event in seen if isinstance(event, UsageReport)]
    assert reports[-1] == NOTHING_REPORTED
    assert seen.index(NOTHING_REPORTED) < seen.index(TextDelta("x"))


async def test_a_failed_try_is_closed_before_the_wait() -> None:
    tries = Tries((Overloaded("busy"),), (Unavailable("down"),), (DONE,))
    open_while_waiting: list[int] = []

    async def sleep(_: float) -> None:
        open_while_waiting.append(tries.open)

    await collect(Retrying(tries.stream, Retries(3, sleep=sleep)).stream(chat("m")))
    assert open_while_waiting == [0, 0]


@pytest.mark.parametrize("retry_after_seconds", [None, 31.0])
async def test_what_no_wait_would_change_ends_at_once(
    retries: Retries, sleeper: Sleeper, retry_after_seconds: float | None
) -> None:
    kind = Overloaded if retry_after_seconds else QuotaExceeded
    tries = Tries((kind("no", retry_after_seconds=retry_after_seconds),), (DONE,))
    seen, error = await outcome(Retrying(tries.stream, retries).stream(chat("m")))
    assert (seen, type(error), sleeper.slept) == ([], kind, [])


async def test_a_limit_that_was_waited_for_is_not_waited_for_again(retries: Retries) -> None:
    scripted = Scripted(ReplyLimits(first_token_seconds=0.05, silence_seconds=0.05))
    seen, error = await outcome(Retrying(scripted.stream, retries).stream(chat("stall")))
    assert (seen, type(error)) == ([], TimedOut)
    assert scripted.opened_streams == 1


async def test_a_stop_ends_the_wait_at_once(scripted: Scripted) -> None:
    """C7."""
    waiting = asyncio.Event()

    async def read() -> None:
        retrying = Retrying(scripted.stream, Retries(3, delay_seconds=30))
        async with aclosing(retrying.stream(chat("error unavailable"))) as events:
            async for event in events:
                assert isinstance(event, PhaseChanged)
                waiting.set()

    reading = asyncio.create_task(read())
    await waiting.wait()
    await asyncio.sleep(0)
    assert reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(0.5):
            await reading
    assert (scripted.opened_streams, scripted.open_streams) == (1, 0)


# --- through the router, from real servers


@pytest.mark.parametrize("attempts", [0, 2])
async def test_who_stays_overloaded_is_asked_once_and_so_many_times_more(
    server: ReplayServer, sleeper: Sleeper, attempts: int
) -> None:
    server.answers["/api/tags"] = (answer({"models": [{"name": "m"}]}),)
    server.answers["/api/chat"] = (
        answer({"error": "too busy"}, status=429, headers={"retry-after-ms": "200"}),
    )
    ollama = Ollama(OllamaSettings(server.url))
    router = Router(
        Registry([Registration(ollama, "ollama")]),
        default_provider="ollama",
        retries=Retries(attempts, delay_seconds=0.01, sleep=sleeper),
    )
    seen, error = await outcome(router.stream(await router.resolve("m"), chat("m")))
    assert type(error) is Overloaded
    assert server.paths().count("/api/chat") == attempts + 1
    assert phases_of(seen) == [Phase.WAITING, Phase.RETRYING] * attempts + [Phase.WAITING]
    assert len(sleeper.slept) == attempts
    assert all(0.2 <= seconds <= 0.3 for seconds in sleeper.slept)
    await ollama.aclose()


async def test_ollama_that_comes_back_answers_by_itself(ollama_url: str) -> None:
    target = urlsplit(ollama_url)
    proxy = FaultProxy(target.hostname or "", target.port or 0)
    async with proxy.running():
        pass  # it has its port now, and the port is closed
    async with AsyncExitStack() as stack:
        waits = itertools.count(1)

        async def sleep(_: float) -> None:
            if next(waits) == 2:
                await stack.enter_async_context(proxy.running())

        ollama = Ollama(OllamaSettings(proxy.url))
        retrying = Retrying(ollama.stream, Retries(3, sleep=sleep))
        options = GenerationOptions(temperature=0, max_tokens=3)
        seen = await collect(retrying.stream(chat("smollm2:135m", options=options)))
        await ollama.aclose()
    assert phases_of(seen) == [Phase.WAITING, Phase.RETRYING] * 2 + [Phase.WAITING]
    details = [event.detail for event in seen if isinstance(event, PhaseChanged) and event.detail]
    assert all("cannot be reached" in detail for detail in details)
    assert text_of(seen)
    assert proxy.connections == 1


async def test_without_retries_the_first_failure_is_told(scripted: Scripted) -> None:
    seen, error = await outcome(Retrying(scripted.stream, NO_RETRIES).stream(chat("flap;words 1")))
    assert (seen, type(error)) == ([], Unavailable)
