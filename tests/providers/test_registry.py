"""Lists: cached, shared by those who wait, and never lost or delayed by a provider that fails."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from providers.errors import Unavailable
from providers.ollama import Ollama, OllamaSettings
from providers.registry import Health, HealthStatus, Registration, Registry
from tests.providers.listing import ListingProvider, info
from tests.providers.replay import ReplayServer, answer


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def one() -> ListingProvider:
    return ListingProvider("one", "a", "b")


@pytest.fixture
def two() -> ListingProvider:
    return ListingProvider("two", "c")


@pytest.fixture
def registry(one: ListingProvider, two: ListingProvider, clock: Clock) -> Registry:
    registrations = [Registration(one, "1", aliases=("first",)), Registration(two, "two")]
    return Registry(registrations, list_timeout_seconds=0.1, max_age_seconds=10, now=clock)


def test_lookup(registry: Registry, one: ListingProvider) -> None:
    for name in ("one", "1", "first"):
        found = registry.get(name)
        assert found is not None
        assert found.provider is one
    assert registry.get("three") is None
    assert registry.by_prefix("one") is None
    assert registry["one"].full_name("a:b") == "1:a:b"
    assert [registration.prefix for registration in registry] == ["1", "two"]


@pytest.mark.parametrize(
    "other",
    [
        Registration(ListingProvider("one"), "x"),
        Registration(ListingProvider("x"), "1"),
        Registration(ListingProvider("x"), "x", aliases=("1",)),
        Registration(ListingProvider("x"), "x", aliases=("x",)),
    ],
)
def test_names_are_unique(one: ListingProvider, other: Registration) -> None:
    with pytest.raises(ValueError, match="share a name"):
        Registry([Registration(one, "1"), other])


async def test_a_list_is_kept_for_its_age(registry: Registry, one: ListingProvider, clock: Clock) -> None:
    assert await registry.models("one") == (info("a"), info("b"))
    clock.advance(9)
    await registry.models("one")
    assert one.asked == 1
    clock.advance(1)
    await registry.models("one")
    assert one.asked == 2
    await registry.models("one", refresh=True)
    assert one.asked == 3
    clock.advance(-60)
    await registry.models("one")
    assert one.asked == 4
    assert registry.health("one") == Health(HealthStatus.UP, None, clock.now)


async def test_those_who_wait_share_one_request(registry: Registry, one: ListingProvider) -> None:
    one.gate.clear()
    waiting = [asyncio.create_task(registry.models("one", refresh=True)) for _ in range(20)]
    impatient = waiting.pop()
    await asyncio.sleep(0)
    impatient.cancel()
    one.gate.set()
    assert await asyncio.gather(*waiting) == [(info("a"), info("b"))] * 19
    assert one.asked == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Unavailable("nobody there"), "nobody there"),
        (ValueError("secret"), "one failed to list its models (ValueError)"),
        (TimeoutError(), "one did not list its models within 0.1 s"),
    ],
)
async def test_failing_provider_keeps_its_list(
    registry: Registry, one: ListingProvider, clock: Clock, error: Exception, says: str
) -> None:
    assert registry.health("one").status is HealthStatus.UNKNOWN
    await registry.all_models()
    one.error = error
    clock.advance(20)
    assert [model.name for _, model in await registry.all_models()] == ["a", "b", "c"]
    assert registry.health("one") == Health(HealthStatus.DOWN, says, clock.now)
    assert registry.health("two").status is HealthStatus.UP
    one.error = None
    await registry.models("one", refresh=True)
    assert registry.health("one") == Health(HealthStatus.UP, says, clock.now)


async def test_silent_provider_delays_nobody_twice(
    registry: Registry, one: ListingProvider, clock: Clock
) -> None:
    one.gate.clear()
    began = time.monotonic()
    assert [model.name for _, model in await registry.all_models()] == ["c"]
    assert 0.09 < time.monotonic() - began < 0.5
    assert registry.health("one").last_error == "one did not list its models within 0.1 s"
    clock.advance(20)
    began = time.monotonic()
    assert await registry.models("one") == ()
    assert time.monotonic() - began < 0.09
    one.gate.set()
    assert await registry.models("one", refresh=True) == (info("a"), info("b"))
    assert one.asked == 2


async def test_black_hole_beside_a_server(server: ReplayServer, black_hole: str) -> None:
    """M4: a provider that is down never delays or breaks the list (2 s cold, at once when warm)."""
    server.answers["/api/tags"] = (answer({"models": [{"name": "m"}]}),)
    hole, live = (
        Ollama(OllamaSettings(url, name=name)) for url, name in ((black_hole, "x"), (server.url, "y"))
    )
    registry = Registry([Registration(hole, "x"), Registration(live, "y")], max_age_seconds=0)
    took = []
    for _ in range(20):
        began = time.monotonic()
        assert [model.name for _, model in await registry.all_models()] == ["m"]
        took.append(time.monotonic() - began)
    assert took[0] < 2.0
    assert sorted(took[1:])[9] < 0.05
    assert registry.health("x").status is HealthStatus.DOWN
    await registry.aclose()


async def test_close_reaches_every_provider(
    registry: Registry, one: ListingProvider, two: ListingProvider, caplog: pytest.LogCaptureFixture
) -> None:
    one.close_error = RuntimeError("stuck")
    two.gate.clear()
    waiting = asyncio.create_task(registry.models("two"))
    await asyncio.sleep(0)
    await registry.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert one.closed
    assert two.closed
    assert "provider one did not close" in caplog.text


async def test_an_older_list_does_while_the_newer_one_is_long_in_coming(
    registry: Registry, one: ListingProvider, clock: Clock
) -> None:
    """M4: warm, nobody waits for a provider that has fallen silent."""
    await registry.models("one")
    one.listed.append(info("late"))
    one.gate.clear()
    clock.advance(20)
    began = time.monotonic()
    assert await registry.models("one") == (info("a"), info("b"))
    assert time.monotonic() - began < 0.05
    one.gate.set()
    assert await registry.models("one", refresh=True) == (info("a"), info("b"), info("late"))
    assert one.asked == 2


async def test_a_provider_that_lists_and_would_not_answer_is_down(
    registry: Registry, one: ListingProvider, clock: Clock
) -> None:
    one.check_error = Unavailable("out of order")
    assert await registry.models("one") == (info("a"), info("b"))
    assert registry.health("one") == Health(HealthStatus.DOWN, "out of order", clock.now)
    one.check_error = None
    await registry.models("one", refresh=True)
    assert registry.health("one").status is HealthStatus.UP


async def test_a_recalled_list_stays_until_the_provider_gives_one(
    registry: Registry, one: ListingProvider
) -> None:
    registry.recall("one", [info("old")])
    one.error = Unavailable("nobody there")
    assert await registry.models("one") == (info("old"),)
    assert not registry.listed.is_set()
    one.error = None
    assert await registry.models("one", refresh=True) == (info("a"), info("b"))
    assert registry.listed.is_set()


@pytest.mark.parametrize(("enabled", "configured"), [(False, True), (True, False)])
async def test_a_provider_that_is_not_in_use_is_never_asked(
    enabled: bool, configured: bool, one: ListingProvider, two: ListingProvider
) -> None:
    off = Registration(one, "1", enabled=enabled, configured=configured)
    registry = Registry([off, Registration(two, "2")])
    assert await registry.models("one", refresh=True) == ()
    assert [model.name for _, model in await registry.all_models(refresh=True)] == ["c"]
    assert (one.asked, registry.health("one")) == (0, Health())
    assert [each.in_use for each in registry] == [False, True]
