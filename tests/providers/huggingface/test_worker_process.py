"""Workers that misbehave, each a real process: what is said of it, and that it is gone."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from providers.base import GenerationOptions, ModelState, PhaseChanged, ProviderEvent
from providers.errors import LoadFailed, OutOfMemory, ProviderError, TimedOut, Unavailable
from providers.huggingface.settings import HuggingFaceSettings
from providers.huggingface.worker_process import WorkerEnded
from tests.providers.conftest import chat, collect, outcome, text_of
from tests.providers.huggingface.conftest import serving
from tests.providers.huggingface.processes import ended, workers
from tests.providers.huggingface.tiny_models import write_reciter

_FAULTY = Path(__file__).parent / "faulty_worker.py"


def _with_fault(settings: HuggingFaceSettings, fault: str) -> HuggingFaceSettings:
    write_reciter(settings.models_path / "model", "abc")
    root = str(Path(__file__).parents[3])
    return replace(
        settings, worker_command=(sys.executable, str(_FAULTY), fault), environment={"PYTHONPATH": root}
    )


async def _pid(events: AsyncGenerator[ProviderEvent, None]) -> int:
    """What a faulty worker tells first."""
    async for event in events:
        if isinstance(event, PhaseChanged) and event.detail is not None and event.detail.isdigit():
            return int(event.detail)
    raise AssertionError("the worker told nothing")


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("exits", WorkerEnded, "(exit code 1): it has no torch"),
        ("version", Unavailable, "speaks version 2 of the protocol and the server version 1"),
        ("garbage", Unavailable, "cannot be read"),
        ("huge", Unavailable, "4294967295 bytes was announced"),
        ("never-loads", LoadFailed, "did not load within 1 s"),
        ("never-ends", LoadFailed, "did not load within 1 s"),
        ("speaks-out-of-turn", Unavailable, "out of turn"),
    ],
)
async def test_a_fault_is_told_and_its_process_is_gone(
    settings: HuggingFaceSettings, fault: str, kind: type[ProviderError], message: str
) -> None:
    async with serving(replace(_with_fault(settings, fault), load_timeout_seconds=1)) as provider:
        _, error = await outcome(provider.stream(chat("model")))
        assert isinstance(error, kind)
        assert message in error.message
    assert workers(settings) == []
    assert list(settings.runtime_dir.iterdir()) == []


async def test_a_failed_load_is_remembered_until_one_succeeds(settings: HuggingFaceSettings) -> None:
    async with serving(replace(_with_fault(settings, "never-loads"), load_timeout_seconds=0.5)) as provider:
        await outcome(provider.stream(chat("model")))
        (info,) = await provider.models()
        assert info.state is ModelState.FAILED
        assert "did not load within 0.5 s" in str(info.description)


async def test_a_conversion_may_take_longer_than_a_load_as_long_as_it_advances(
    settings: HuggingFaceSettings,
) -> None:
    slow = replace(_with_fault(settings, "converts"), load_timeout_seconds=0.7)
    async with serving(slow) as provider, aclosing(provider.load("model")) as phases:
        shares = [phase.progress async for phase in phases if phase.progress is not None]
    assert shares == [step / 40 for step in range(40)]


async def test_a_silent_worker_is_ended_and_its_stream_fails(settings: HuggingFaceSettings) -> None:
    async with serving(replace(_with_fault(settings, "mute"), stream_timeout_seconds=0.3)) as provider:
        _, error = await outcome(provider.stream(chat("model")))
        assert isinstance(error, TimedOut)
        assert "silent for 0.3 s" in error.message
        for worker in workers(settings):
            assert await ended(worker.pid, within_seconds=1)


async def test_a_worker_killed_while_it_loads_fails_that_load(settings: HuggingFaceSettings) -> None:
    async with serving(_with_fault(settings, "never-loads")) as provider:
        stream = provider.stream(chat("model"))
        os.kill(await _pid(stream), signal.SIGKILL)
        _, error = await outcome(stream)
        assert isinstance(error, OutOfMemory)


@pytest.mark.parametrize("fault", ["never-loads", "never-ends"])
async def test_closing_ends_a_worker_that_loads(settings: HuggingFaceSettings, fault: str) -> None:
    """``never-ends`` ignores being asked to."""
    async with serving(_with_fault(settings, fault)) as provider:
        stream = provider.stream(chat("model"))
        pid = await _pid(stream)
        async with asyncio.timeout(1):
            await provider.aclose()
        assert not psutil.pid_exists(pid)
        _, error = await outcome(stream)
        assert isinstance(error, Unavailable)


@pytest.mark.parametrize("fault", ["never-loads", "never-ends"])
async def test_a_load_that_nobody_waits_for_any_more_is_given_up(
    settings: HuggingFaceSettings, fault: str
) -> None:
    async with serving(_with_fault(settings, fault)) as provider:
        stream = provider.stream(chat("model"))
        pid = await _pid(stream)
        await stream.aclose()
        assert await ended(pid, within_seconds=1)


async def test_a_stream_closed_before_its_worker_has_a_process_leaves_nothing(
    settings: HuggingFaceSettings,
) -> None:
    async with serving(_with_fault(settings, "never-loads")) as provider:
        stream = provider.stream(chat("model"))
        await anext(stream)
        await stream.aclose()
    async with serving(settings) as provider:
        reply = await collect(provider.stream(chat("model", options=GenerationOptions(temperature=0))))
        assert text_of(reply) == "abc"
    assert workers(settings) == []


async def test_no_socket_and_no_program_are_provider_errors(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "model", "abc")
    long = replace(settings, runtime_dir=settings.runtime_dir / ("x" * 200))
    missing = replace(settings, worker_command=("/no/such/program",))
    for broken, message in ((long, "No socket"), (missing, "No process")):
        async with serving(broken) as provider:
            _, error = await outcome(provider.stream(chat("model")))
            assert isinstance(error, Unavailable)
            assert message in error.message


async def test_sockets_that_a_killed_server_left_are_no_obstacle(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "model", "abc")
    settings.runtime_dir.mkdir(mode=0o755)
    left = settings.runtime_dir / "left.sock"
    left.touch()
    os.utime(left, (0, 0))
    async with serving(settings) as provider:
        reply = await collect(provider.stream(chat("model", options=GenerationOptions(temperature=0))))
        assert text_of(reply) == "abc"
        assert list(settings.runtime_dir.iterdir()) == []
        assert settings.runtime_dir.stat().st_mode & 0o777 == 0o700
