"""Models come and go under a memory limit, each in a real process (F1, H2, H6)."""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace

import psutil
import pytest

from providers.base import GenerationOptions, ModelState, Phase, PhaseChanged
from providers.errors import OutOfMemory
from providers.huggingface.catalog import Catalog
from providers.huggingface.footprint import PROCESS_BYTES, estimated_bytes
from providers.huggingface.memory import MIB
from providers.huggingface.memory_alarm import MemoryMarks
from providers.huggingface.pool import WorkerPool
from providers.huggingface.provider import HuggingFace
from providers.huggingface.settings import HuggingFaceSettings
from tests.providers.conftest import chat, collect, outcome, text_of
from tests.providers.huggingface.conftest import load, serving, until_text
from tests.providers.huggingface.processes import ended, workers
from tests.providers.huggingface.tiny_models import write_babbler, write_reciter

_GREEDY = GenerationOptions(temperature=0)
_ENDLESS = "abca"
_LONG = GenerationOptions(temperature=0, max_tokens=90_000)
# A small model is expected to take 400 MiB and takes about 300.
_ROOM_FOR_ONE = 600 * MIB
_ROOM_FOR_TWO = 900 * MIB
_QUEUED = PhaseChanged(Phase.QUEUED, "waiting for room in memory")


async def ready(provider: HuggingFace) -> list[str]:
    return [info.name for info in await provider.models() if info.state is ModelState.READY]


async def test_an_idle_model_makes_room_and_its_process_is_gone(settings: HuggingFaceSettings) -> None:
    for name in ("one", "two"):
        write_reciter(settings.models_path / name, name)
    async with serving(replace(settings, max_memory_bytes=_ROOM_FOR_ONE)) as provider:
        await load(provider, "one")
        [held] = await provider.loaded()
        assert held.memory_bytes is not None
        assert PROCESS_BYTES / 2 < held.memory_bytes < PROCESS_BYTES
        pid = (await provider.status("one")).pid
        reply = await collect(provider.stream(chat("two", options=_GREEDY)))
        assert reply[0] == _QUEUED
        assert text_of(reply) == "two"
        assert not psutil.pid_exists(pid)
        assert await ready(provider) == ["two"]


async def test_a_model_in_use_stays_and_the_next_one_waits(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "one", _ENDLESS, window=100_000)
    write_reciter(settings.models_path / "two", "two")
    async with serving(replace(settings, max_memory_bytes=_ROOM_FOR_ONE)) as provider:
        async with aclosing(provider.stream(chat("one", options=_LONG))) as events:
            await until_text(events)
            pid = (await provider.status("one")).pid
            waiting = provider.stream(chat("two", options=_GREEDY))
            assert await anext(waiting) == _QUEUED
            reply = asyncio.create_task(collect(waiting))
            await until_text(events)
            assert await ready(provider) == ["one"]
            assert [process.pid for process in workers(settings)] == [pid]
        assert text_of(await reply) == "two"
        assert not psutil.pid_exists(pid)


async def test_no_idle_model_goes_in_vain(settings: HuggingFaceSettings) -> None:
    """The big one has to wait for the busy one, whoever else goes."""
    write_reciter(settings.models_path / "busy", _ENDLESS, window=100_000)
    write_reciter(settings.models_path / "idle", "idle")
    write_babbler(settings.models_path / "big", intermediate_size=500_000)
    limited = replace(settings, max_memory_bytes=760 * MIB, max_loaded_models=3, precision="float32")
    async with serving(limited) as provider:
        async with aclosing(provider.stream(chat("busy", options=_LONG))) as events:
            await until_text(events)
            await load(provider, "idle")
            loading = asyncio.create_task(load(provider, "big"))
            for _ in range(3):  # each measures the workers, as the load does before it decides
                assert await ready(provider) == ["busy", "idle"]
            await until_text(events)
        await loading
        assert "big" in await ready(provider)


async def test_a_model_that_is_too_big_by_itself_is_refused_and_nothing_is_touched(
    settings: HuggingFaceSettings,
) -> None:
    write_reciter(settings.models_path / "small", "small")
    write_babbler(settings.models_path / "big", intermediate_size=20_000)
    small = estimated_bytes(Catalog(settings.models_path).scan()["small"], settings)
    limit = small + MIB
    async with serving(replace(settings, max_memory_bytes=limit)) as provider:
        await load(provider, "small")
        before = workers(settings)
        events, error = await outcome(provider.stream(chat("big")))
        assert events == []
        assert isinstance(error, OutOfMemory)
        assert "The model big needs about 404 MiB of memory" in error.message
        assert f"may take {limit / MIB:.0f} MiB" in error.message
        assert "HUGGINGFACE_MAX_MEMORY" in error.message
        with pytest.raises(OutOfMemory):
            await load(provider, "big")
        assert workers(settings) == before
        assert await ready(provider) == ["small"]


async def test_a_clean_up_ends_idle_models_until_the_rest_is_below_the_mark(
    settings: HuggingFaceSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """H6. One takes 34 % of the limit, both 65 %."""
    for name in ("one", "two"):
        write_reciter(settings.models_path / name, name)
    marks = MemoryMarks(warning=0.2, critical=0.5, cleanup=0.5)
    pool = WorkerPool(replace(settings, max_memory_bytes=_ROOM_FOR_TWO, memory_marks=marks))
    found = Catalog(settings.models_path).scan()
    try:
        for name in ("one", "two"):
            async with pool.lease(found[name]) as worker, aclosing(worker.loading()) as phases:
                async for _ in phases:
                    pass
        async with pool.lease(found["one"]), pool.lease(found["two"]):
            await pool.clean_up()
            assert {worker.model.name for worker in pool.loaded()} == {"one", "two"}
        async with pool.lease(found["one"]):
            pass
        pids = {worker.model.name: worker.pid for worker in pool.loaded()}
        await pool.clean_up()
        await pool.clean_up()
        assert [worker.model.name for worker in pool.loaded()] == ["one"]
        assert pids["two"] is not None
        assert not psutil.pid_exists(pids["two"])
    finally:
        await pool.aclose()
    [line] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "of 900 MiB" in line.getMessage()
    assert "(in use), two" in line.getMessage()


async def test_cleaning_up_goes_on_while_there_are_models_and_ends_with_the_provider(
    settings: HuggingFaceSettings,
) -> None:
    write_reciter(settings.models_path / "one", _ENDLESS, window=100_000)
    marks = MemoryMarks(warning=0.01, critical=0.01, cleanup=0.01)
    often = replace(settings, memory_marks=marks, cleanup_interval_seconds=0.02)
    async with serving(often) as provider:
        async with aclosing(provider.stream(chat("one", options=_LONG))) as events:
            await until_text(events)
            pid = (await provider.status("one")).pid
            await until_text(events)
        assert await ended(pid, within_seconds=5)
        assert "clean-up" in _tasks()
    assert "clean-up" not in _tasks()


async def test_without_an_interval_nobody_cleans_up(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "one", "one")
    async with serving(settings) as provider:
        await load(provider, "one")
        assert "clean-up" not in _tasks()


def _tasks() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks()}
