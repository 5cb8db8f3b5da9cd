"""Who answers instead, when a message names no model and its model fails (P4, C3)."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from providers.base import ChatRequest, ModelInfo, Phase, PhaseChanged, ProviderEvent, TextDelta
from providers.errors import ModelNotFound, ProviderError, StreamBroken, Unavailable
from providers.registry import Registration, Registry
from providers.reply import ReplyLimits
from providers.retry import NO_RETRIES, Retries
from providers.router import ModelSwitched, RoutedEvent, Router
from providers.scripted import Scripted
from tests.providers.conftest import chat, outcome, text_of

LIMITS = ReplyLimits(first_token_seconds=60, silence_seconds=60)


class Vendor(Scripted):
    """One of several, with one script."""

    def __init__(self, name: str, script: str) -> None:
        super().__init__(LIMITS)
        self.name = name
        self.script = script
        self.is_up = True

    async def check(self) -> None:
        if not self.is_up:
            raise Unavailable(f"{self.name} is away")


def router_of(
    *vendors: Vendor, order: tuple[str, ...] | None = None, retries: Retries = NO_RETRIES
) -> Router:
    return Router(
        Registry([Registration(vendor, vendor.name) for vendor in vendors]),
        default_provider=vendors[0].name,
        default_models={vendor.name: vendor.script for vendor in vendors},
        fallback_order=order or tuple(vendor.name for vendor in vendors),
        retries=retries,
    )


async def answered(router: Router, name: str | None = None) -> tuple[list[RoutedEvent], ProviderError | None]:
    return await outcome(router.stream(await router.resolve(name), chat("whatever was asked for")))


def switches(events: list[RoutedEvent]) -> list[tuple[str, str]]:
    return [
        (event.route.full_name, event.error.message) for event in events if isinstance(event, ModelSwitched)
    ]


@pytest.mark.parametrize(
    "kind",
    [
        *("unavailable", "timed-out", "bad-credentials", "quota-exceeded", "overloaded", "out-of-memory"),
        *("load-failed", "model-not-found", "capability-missing"),
    ],
)
async def test_the_next_one_answers(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Vendor("first", f"error {kind}"), Vendor("second", "words 3")
    with caplog.at_level(logging.WARNING):
        seen, error = await answered(router_of(first, second))
    assert error is None
    assert switches(seen) == [("second:words 3", f"scripted: {kind.replace('-', ' ')}")]
    assert text_of(seen) == "w1 w2 w3"
    assert (first.opened_streams, second.opened_streams) == (1, 1)
    assert f"second:words 3 answers instead of first:error {kind}" in caplog.text


@pytest.mark.parametrize("kind", ["content-filtered", "bad-request", "rejected", "context-too-long"])
async def test_a_refusal_is_not_routed_around(kind: str) -> None:
    first, second = Vendor("first", f"error {kind}"), Vendor("second", "words 3")
    seen, error = await answered(router_of(first, second))
    assert error is not None
    assert error.message == f"scripted: {kind.replace('-', ' ')}"
    assert seen == []
    assert second.opened_streams == 0


async def test_nobody_takes_over_a_reply_that_has_begun() -> None:
    first, second = Vendor("first", "words 2;cut"), Vendor("second", "words 3")
    seen, error = await answered(router_of(first, second))
    assert type(error) is StreamBroken
    assert text_of(seen) == "w1 w2"
    assert second.opened_streams == 0


async def test_a_model_that_was_named_is_not_replaced() -> None:
    first, second = Vendor("first", "error unavailable"), Vendor("second", "words 3")
    seen, error = await answered(router_of(first, second), "first:error unavailable")
    assert type(error) is Unavailable
    assert (seen, second.opened_streams) == ([], 0)


async def test_a_model_that_was_not_named_for_this_message_may_be() -> None:
    """The conversation's model, say."""
    router = router_of(Vendor("first", "words 1"), Vendor("second", "words 3"))
    route = await router.resolve("second:error overloaded", is_open=True)
    seen, error = await outcome(router.stream(route, chat("")))
    assert error is None
    assert switches(seen) == [("first:words 1", "scripted: overloaded")]


async def test_the_order_is_the_configured_one_and_nobody_is_asked_twice() -> None:
    vendors = [Vendor(name, f"error unavailable;text {name}") for name in ("first", "second", "third")]
    seen, error = await answered(router_of(*vendors, order=("third", "nobody", "first", "second")))
    assert [name for name, _ in switches(seen)] == [
        "third:error unavailable;text third",
        "second:error unavailable;text second",
    ]
    assert type(error) is Unavailable
    assert [vendor.opened_streams for vendor in vendors] == [1, 1, 1]


async def test_who_is_not_in_the_order_does_not_answer_instead() -> None:
    first, second = Vendor("first", "error unavailable"), Vendor("second", "words 3")
    seen, error = await answered(router_of(first, second, order=("first",)))
    assert type(error) is Unavailable
    assert seen == []


async def test_who_is_down_is_passed_over() -> None:
    first, down = Vendor("first", "error unavailable"), Vendor("second", "words 3")
    down.is_up = False
    seen, error = await answered(router_of(first, down, Vendor("third", "words 1")))
    assert error is None
    assert [name for name, _ in switches(seen)] == ["third:words 1"]
    assert down.opened_streams == 0


async def test_each_one_is_tried_again_first() -> None:
    async def no_sleep(_: float) -> None:
        pass

    first, second = Vendor("first", "error unavailable"), Vendor("second", "flap;words 1")
    retries = Retries(2, sleep=no_sleep)
    seen, error = await answered(router_of(first, second, retries=retries))
    assert error is None
    phases = [event for event in seen if isinstance(event, PhaseChanged)]
    assert [phase.phase for phase in phases] == [Phase.RETRYING] * 3
    assert (first.opened_streams, second.opened_streams) == (3, 2)


async def test_closing_it_closes_whoever_answers() -> None:
    first, second = Vendor("first", "error unavailable"), Vendor("second", "words 1;stall")
    router = router_of(first, second)
    async with aclosing(router.stream(await router.resolve(None), chat(""))) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
    assert (first.open_streams, second.open_streams) == (0, 0)


async def test_a_vendor_without_a_model_is_passed_over() -> None:
    class Empty(Vendor):
        async def models(self) -> list[ModelInfo]:
            return []

        def find(self, name: str, listed: Sequence[ModelInfo]) -> ModelInfo:
            raise ModelNotFound(f"{self.name} has nothing")

        def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
            raise AssertionError("it has no model to ask")

    seen, error = await answered(
        router_of(Vendor("first", "error unavailable"), Empty("empty", "x"), Vendor("third", "words 1"))
    )
    assert error is None
    assert [name for name, _ in switches(seen)] == ["third:words 1"]
