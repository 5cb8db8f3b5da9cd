"""A GGUF file is converted once, wholly or not at all."""

import signal
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from providers.base import GenerationOptions
from providers.errors import LoadFailed, OutOfMemory
from providers.huggingface.provider import HuggingFace
from providers.huggingface.settings import HuggingFaceSettings
from tests.providers.conftest import chat, collect, text_of
from tests.providers.huggingface.conftest import serving
from tests.providers.huggingface.processes import ended, workers
from tests.providers.huggingface.tiny_models import write_gguf_reciter

_GREEDY = GenerationOptions(temperature=0)


async def _details(provider: HuggingFace, model: str) -> list[str]:
    async with aclosing(provider.load(model)) as phases:
        return [str(phase.detail) async for phase in phases]


def _converted(settings: HuggingFaceSettings) -> list[Path]:
    return [path for path in settings.cache_dir.glob("converted/*/*") if path.is_dir()]


async def test_a_file_is_converted_once_and_again_when_it_has_changed(settings: HuggingFaceSettings) -> None:
    path = write_gguf_reciter(settings.models_path / "model.gguf", "héy 😀!")
    async with serving(settings) as provider:
        assert any("(once)" in detail for detail in await _details(provider, "model"))
        assert text_of(await collect(provider.stream(chat("model", options=_GREEDY)))) == "héy 😀!"
    (first,) = _converted(settings)
    async with serving(settings) as provider:
        assert not any("(once)" in detail for detail in await _details(provider, "model"))
    write_gguf_reciter(path, "other")
    async with serving(settings) as provider:
        assert text_of(await collect(provider.stream(chat("model", options=_GREEDY)))) == "other"
    assert len(_converted(settings)) == 1
    assert not first.exists()


async def test_a_conversion_that_is_killed_leaves_nothing_that_counts(settings: HuggingFaceSettings) -> None:
    write_gguf_reciter(settings.models_path / "model.gguf", "other")
    async with serving(settings) as provider:
        async with aclosing(provider.load("model")) as phases:
            async for phase in phases:
                if "weights" in str(phase.detail):  # the tokenizer has been written
                    break
            (child,) = workers(settings)
            child.send_signal(signal.SIGKILL)
            with pytest.raises(OutOfMemory):
                await anext(phases)
        assert [path.suffix for path in _converted(settings)] == [".half"]
        assert text_of(await collect(provider.stream(chat("model", options=_GREEDY)))) == "other"
    assert [path.suffix for path in _converted(settings)] == [""]


async def test_stopping_a_conversion_ends_its_process(settings: HuggingFaceSettings) -> None:
    write_gguf_reciter(settings.models_path / "model.gguf", "other")
    async with serving(settings) as provider:
        async with aclosing(provider.load("model")) as phases:
            async for phase in phases:
                if "converting" in str(phase.detail):
                    break
        (child,) = workers(settings)
        assert await ended(child.pid, within_seconds=1)


async def test_a_file_that_cannot_be_written_is_a_failed_load(settings: HuggingFaceSettings) -> None:
    write_gguf_reciter(settings.models_path / "model.gguf", "other")
    (settings.models_path / "file").touch()
    async with serving(replace(settings, cache_dir=settings.models_path / "file/cache")) as provider:
        with pytest.raises(LoadFailed, match="cannot be read"):
            await _details(provider, "model")
