"""Many readers and many models share few workers."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import psutil
import pytest

from providers.base import GenerationOptions, ModelState, Phase, PhaseChanged
from providers.errors import InUse, Overloaded, Unavailable
from providers.huggingface.settings import HuggingFaceSettings
from tests.providers.conftest import chat, collect, outcome, text_of
from tests.providers.huggingface.conftest import serving, until_text
from tests.providers.huggingface.processes import workers
from tests.providers.huggingface.tiny_models import write_reciter

_GREEDY = GenerationOptions(temperature=0)
_WORDS = "héy 😀!"
_ENDLESS = "abca"
_LONG = GenerationOptions(temperature=0, max_tokens=90_000)


async def test_requests_for_a_cold_model_share_one_load_and_come_in_turn(
    settings: HuggingFaceSettings,
) -> None:
    write_reciter(settings.models_path / "reciter", _WORDS)
    async with serving(settings) as provider:
        replies = await asyncio.gather(
            *(collect(provider.stream(chat("reciter", options=_GREEDY))) for _ in range(4))
        )
        assert len(workers(settings)) == 1
    assert [text_of(events) for events in replies] == [_WORDS] * 4
    phases = [[event.phase for event in events if isinstance(event, PhaseChanged)] for events in replies]
    assert sorted(Phase.QUEUED in of_one for of_one in phases) == [False, True, True, True]
    assert all(of_one[0] is Phase.LOADING_MODEL and of_one[-1] is Phase.WAITING for of_one in phases)


async def test_more_requests_than_may_wait_are_refused(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "endless", _ENDLESS, window=100_000)
    async with (
        serving(replace(settings, max_queued_requests=1)) as provider,
        aclosing(provider.stream(chat("endless", options=_LONG))) as events,
    ):
        await until_text(events)
        _, error = await outcome(provider.stream(chat("endless")))
        assert isinstance(error, Overloaded)


async def test_two_models_beyond_the_limit_take_turns_and_a_busy_one_stays(
    settings: HuggingFaceSettings,
) -> None:
    for name in ("one", "two", "six"):
        write_reciter(settings.models_path / name, _ENDLESS if name == "one" else name, window=100_000)
    async with serving(replace(settings, max_loaded_models=2)) as provider:

        async def ready() -> list[str]:
            return [info.name for info in await provider.models() if info.state is ModelState.READY]

        async with aclosing(provider.stream(chat("one", options=_LONG))) as events:
            await until_text(events)
            await collect(provider.stream(chat("two", options=_GREEDY)))
            reply = await collect(provider.stream(chat("six", options=_GREEDY)))
            assert reply[0] == PhaseChanged(Phase.QUEUED, "waiting for room in memory")
            assert text_of(reply) == "six"
            assert await ready() == ["one", "six"]
        await collect(provider.stream(chat("two", options=_GREEDY)))
        assert await ready() == ["one", "two"]  # "one" was the last to be used
        assert len(workers(settings)) == 2


async def test_a_model_waits_for_room_until_a_busy_one_is_done(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "one", _ENDLESS, window=100_000)
    write_reciter(settings.models_path / "two", "two")
    async with serving(replace(settings, max_loaded_models=1)) as provider:
        async with aclosing(provider.stream(chat("one", options=_LONG))) as events:
            await until_text(events)
            waiting = provider.stream(chat("two", options=_GREEDY))
            assert await anext(waiting) == PhaseChanged(Phase.QUEUED, "waiting for room in memory")
        assert text_of(await collect(waiting)) == "two"


async def test_closing_ends_every_process_and_every_stream(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "endless", _ENDLESS, window=100_000)
    async with serving(settings) as provider:
        answering = provider.stream(chat("endless", options=_LONG))
        await until_text(answering)
        queued = provider.stream(chat("endless"))
        await anext(queued)
        pid = (await provider.status("endless")).pid
        async with asyncio.timeout(1):
            await provider.aclose()
        assert not psutil.pid_exists(pid)
        for stream in (answering, queued, provider.stream(chat("endless"))):
            _, error = await outcome(stream)
            assert isinstance(error, Unavailable)
            assert "shutting down" in error.message


async def test_a_load_goes_on_for_the_others_who_wait_for_it(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "reciter", _WORDS)
    async with serving(settings) as provider:
        first = provider.stream(chat("reciter", options=_GREEDY))
        second = provider.stream(chat("reciter", options=_GREEDY))
        await anext(first)
        await anext(second)
        await first.aclose()
        assert text_of(await collect(second)) == _WORDS


async def test_a_model_is_unloaded_unless_somebody_uses_it(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "endless", _ENDLESS, window=100_000)
    async with serving(settings) as provider:
        await provider.unload("endless")
        assert await provider.loaded() == []
        async with aclosing(provider.stream(chat("endless", options=_LONG))) as events:
            await until_text(events)
            [held] = await provider.loaded()
            assert (held.name, held.leases) == ("endless", 1)
            with pytest.raises(InUse, match="endless is in use"):
                await provider.unload("endless")
            await until_text(events)
        pid = (await provider.status("endless")).pid
        await provider.unload("endless")
        assert not psutil.pid_exists(pid)
        assert await provider.loaded() == []
        assert [info.state for info in await provider.models()] == [ModelState.COLD]
