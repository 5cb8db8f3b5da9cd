"""The provider over small models, each a real process."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from providers.base import (
    ChatMessage,
    ChatRequest,
    Finished,
    FinishReason,
    GenerationOptions,
    ModelState,
    Phase,
    PhaseChanged,
    Role,
    TextDelta,
    UsageReport,
)
from providers.errors import (
    BadRequest,
    ContextTooLong,
    LoadFailed,
    ModelNotFound,
    OutOfMemory,
    StreamBroken,
    Unavailable,
)
from providers.huggingface.provider import HuggingFace
from providers.huggingface.settings import HuggingFaceSettings, child_environment
from tests.providers.conftest import chat, collect, outcome, text_of
from tests.providers.huggingface.conftest import serving, until_text
from tests.providers.huggingface.processes import ended
from tests.providers.huggingface.tiny_models import write_babbler, write_reciter

_GREEDY = GenerationOptions(temperature=0)
_WORDS = "héy 😀!"
_ENDLESS = "abca"
_LONG = GenerationOptions(temperature=0, max_tokens=90_000)
_SHORT = GenerationOptions(temperature=0, max_tokens=3)


@pytest.fixture(scope="module")
async def reciting(
    tmp_path_factory: pytest.TempPathFactory, runtime_root: Path
) -> AsyncGenerator[HuggingFace]:
    """A provider with one small model that says ``_WORDS``, shared by tests that do not kill it."""
    folder = tmp_path_factory.mktemp("reciting")
    write_reciter(folder / "models/reciter", _WORDS)
    settings = HuggingFaceSettings(
        models_path=folder / "models",
        cache_dir=folder / "cache",
        runtime_dir=runtime_root / "reciting",
        threads=1,
        device="cpu",
    )
    async with serving(settings) as provider:
        yield provider


async def test_a_reply_has_its_phases_its_text_its_usage_and_its_end(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "org/reciter", _WORDS)
    async with serving(settings) as provider:
        events = await collect(provider.stream(chat("org/reciter", options=_GREEDY)))
        assert [event.phase for event in events if isinstance(event, PhaseChanged)] == [
            Phase.LOADING_MODEL,
            Phase.LOADING_MODEL,
            Phase.WAITING,
        ]
        assert text_of(events) == _WORDS
        assert [event.text for event in events if isinstance(event, TextDelta)][:2] == ["h", "é"]
        prompt_tokens = len("user Hello\n>")
        assert events[-2:] == [
            UsageReport(prompt_tokens, len(_WORDS.encode()) + 1),
            Finished(FinishReason.STOP),
        ]
        again = await collect(provider.stream(chat("org/reciter", options=_GREEDY)))
        assert again[0] == PhaseChanged(Phase.WAITING)
        assert (await provider.models())[0].state is ModelState.READY


async def test_text_is_what_the_tokenizer_makes_of_the_tokens_of_generate(
    settings: HuggingFaceSettings,
) -> None:
    folder = write_babbler(settings.models_path / "babbler")
    async with serving(replace(settings, precision="float32")) as provider:
        events = await collect(
            provider.stream(chat("babbler", options=GenerationOptions(temperature=0, max_tokens=50)))
        )
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("user Hello\n>", return_tensors="pt")
    tokens = model.generate(  # type: ignore[misc]
        **prompt, max_new_tokens=50, do_sample=False
    )[0, prompt.input_ids.shape[1] :]
    assert text_of(events) == str(tokenizer.decode(tokens, skip_special_tokens=True)).replace("\0", "\ufffd")
    assert events[-2:] == [UsageReport(prompt.input_ids.shape[1], 50), Finished(FinishReason.LENGTH)]


async def test_sampling_follows_its_seed_and_only_its_seed(settings: HuggingFaceSettings) -> None:
    write_babbler(settings.models_path / "babbler")

    async def say(seed: int | None) -> str:
        options = GenerationOptions(temperature=1, max_tokens=30, seed=seed)
        return text_of(await collect(provider.stream(chat("babbler", options=options))))

    async with serving(replace(settings, precision="float32")) as provider:
        assert await say(7) == await say(7)
        assert await say(7) != await say(8)
        assert await say(None) != await say(None)
        narrow = GenerationOptions(top_k=1, max_tokens=30)
        greedy = GenerationOptions(temperature=0, max_tokens=30)
        assert text_of(await collect(provider.stream(chat("babbler", options=narrow)))) == text_of(
            await collect(provider.stream(chat("babbler", options=greedy)))
        )


@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [(("😀",), "héy ", 9), (("y ", "zz"), "hé", 5), (("!?",), _WORDS, 12), (("h",), "", 1)],
)
async def test_a_reply_ends_before_a_stop_string(
    reciting: HuggingFace, stop: tuple[str, ...], text: str, tokens: int
) -> None:
    """Stop strings here run over several tokens; the tokens that made them are counted."""
    events = await collect(
        reciting.stream(chat("reciter", options=GenerationOptions(temperature=0, stop=stop)))
    )
    assert text_of(events) == text
    report = events[-2]
    assert isinstance(report, UsageReport)
    assert report.completion_tokens == min(tokens, len(_WORDS.encode()) + 1)
    assert events[-1] == Finished(FinishReason.STOP)


async def test_a_prompt_beyond_the_window_is_refused_and_one_within_it_is_cut_there(
    reciting: HuggingFace,
) -> None:
    fixed = len("user \n>")
    _, error = await outcome(reciting.stream(chat("reciter", "x" * (256 - fixed))))
    assert isinstance(error, ContextTooLong)
    assert "256" in error.message
    events = await collect(reciting.stream(chat("reciter", "x" * (256 - fixed - 2), _GREEDY)))
    assert events[-2:] == [UsageReport(254, 2), Finished(FinishReason.LENGTH)]
    assert text_of(events) == "h\ufffd"


@pytest.mark.parametrize(
    "name", ["nobody", "", "../models/reciter", "/etc", "a\0b", "a\\b", "x" * 10_000, "\ud800"]
)
async def test_a_name_that_the_catalogue_does_not_list_is_not_found(reciting: HuggingFace, name: str) -> None:
    _, error = await outcome(reciting.stream(chat(name)))
    assert isinstance(error, ModelNotFound)
    assert len(error.message) < 300


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(temperature=float("nan")),
        GenerationOptions(temperature=-1),
        GenerationOptions(top_p=0),
        GenerationOptions(top_p=1.5),
        GenerationOptions(top_k=0),
        GenerationOptions(max_tokens=0),
        GenerationOptions(seed=2**64),
        GenerationOptions(stop=("",)),
    ],
)
async def test_options_out_of_range_are_refused(reciting: HuggingFace, options: GenerationOptions) -> None:
    _, error = await outcome(reciting.stream(chat("reciter", options=options)))
    assert isinstance(error, BadRequest)


@pytest.mark.parametrize("temperature", [1e-300, 1e-10, 100.0])
async def test_extreme_temperatures_are_no_trouble(reciting: HuggingFace, temperature: float) -> None:
    options = GenerationOptions(temperature=temperature, max_tokens=3)
    assert isinstance((await collect(reciting.stream(chat("reciter", options=options))))[-1], Finished)


async def test_text_that_no_wire_can_carry_is_no_trouble(reciting: HuggingFace) -> None:
    request = ChatRequest(
        "reciter", (ChatMessage(Role.USER, "a\ud800\0b"),), GenerationOptions(stop=("\ud800",))
    )
    assert text_of(await collect(reciting.stream(request))) == _WORDS


async def test_a_closed_stream_stops_the_work_and_the_next_in_turn_follows(
    settings: HuggingFaceSettings,
) -> None:
    write_reciter(settings.models_path / "endless", _ENDLESS, window=100_000)
    async with serving(settings) as provider:
        answering = provider.stream(chat("endless", options=_LONG))
        await until_text(answering)
        stopped = provider.stream(chat("endless", options=_LONG))
        waiting = provider.stream(chat("endless", options=_SHORT))
        assert await anext(stopped) == PhaseChanged(Phase.QUEUED, "1 before this one")
        assert await anext(waiting) == PhaseChanged(Phase.QUEUED, "2 before this one")
        assert (await provider.status("endless")).queued == 2
        await stopped.aclose()
        await answering.aclose()
        at_stop = await provider.status("endless")
        assert text_of(await collect(waiting)) == "abc"
        end = await provider.status("endless")
        assert end.steps - at_stop.steps <= 3 + 1
        assert (end.running, end.queued) == (None, 0)


async def test_beside_a_model_that_fails_others_answer_and_so_does_it_once_mended(
    settings: HuggingFaceSettings,
) -> None:
    bad = write_reciter(settings.models_path / "bad", _WORDS)
    write_reciter(settings.models_path / "good", _WORDS)
    (bad / "chat_template.jinja").write_text("{% for %}")
    async with serving(settings) as provider:
        _, error = await outcome(provider.stream(chat("bad")))
        assert isinstance(error, LoadFailed)
        assert [info.state for info in await provider.models()] == [ModelState.FAILED, ModelState.COLD]
        assert text_of(await collect(provider.stream(chat("good", options=_GREEDY)))) == _WORDS
        write_reciter(bad, "cured")
        assert text_of(await collect(provider.stream(chat("bad", options=_GREEDY)))) == "cured"
        assert {info.state for info in await provider.models()} == {ModelState.READY}


async def test_a_worker_killed_in_mid_answer_breaks_that_stream_and_no_other(
    settings: HuggingFaceSettings,
) -> None:
    write_reciter(settings.models_path / "endless", _ENDLESS, window=100_000)
    async with serving(settings) as provider:
        answering = provider.stream(chat("endless", options=_LONG))
        await until_text(answering)
        queued = provider.stream(chat("endless", options=_SHORT))
        await anext(queued)
        pid = (await provider.status("endless")).pid
        psutil.Process(pid).send_signal(signal.SIGKILL)
        _, error = await outcome(answering)
        assert isinstance(error, StreamBroken)
        assert "was killed" in error.message
        assert text_of(await collect(queued)) == "abc"
        assert (await provider.status("endless")).pid != pid


async def test_a_reply_that_memory_has_no_room_for_fails_and_the_next_one_does_not(
    settings: HuggingFaceSettings,
) -> None:
    write_babbler(settings.models_path / "wide", window=20_000, intermediate_size=20_000)
    folder = Path(__file__).parent
    cramped = replace(
        settings,
        precision="float32",
        worker_command=(sys.executable, str(folder / "cramped_worker.py")),
        environment={"PYTHONPATH": str(folder.parents[2])},
    )
    async with serving(cramped) as provider:
        _, error = await outcome(provider.stream(chat("wide", "x" * 12_000, _SHORT)))
        assert isinstance(error, OutOfMemory)
        assert "not enough memory for this reply" in error.message
        pid = (await provider.status("wide")).pid
        assert isinstance((await collect(provider.stream(chat("wide", options=_SHORT))))[-1], Finished)
        assert (await provider.status("wide")).pid == pid


async def test_float16_on_a_cpu_becomes_bfloat16_and_a_line_in_the_log(
    settings: HuggingFaceSettings, caplog: pytest.LogCaptureFixture
) -> None:
    write_reciter(settings.models_path / "reciter", _WORDS)
    async with serving(replace(settings, precision="float16")) as provider:
        assert text_of(await collect(provider.stream(chat("reciter", options=_GREEDY)))) == _WORDS
    assert "runs in bfloat16: float16 is slow on cpu" in caplog.text


async def test_the_worker_has_no_secrets(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "reciter", _WORDS)
    environ = {"PATH": "/usr/bin", "HF_TOKEN": "secret", "OPENAI_API_KEY": "secret", "DATABASE_URL": "secret"}
    async with serving(replace(settings, environment=child_environment(environ))) as provider:
        await collect(provider.stream(chat("reciter", options=_GREEDY)))
        child = psutil.Process((await provider.status("reciter")).pid)
        seen = child.environ()
        assert "secret" not in seen.values()
        assert seen["HF_HUB_OFFLINE"] == "1"
        assert seen["PATH"] == "/usr/bin"
        assert child.net_connections() == []


async def test_the_worker_ends_with_a_server_that_is_killed(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "endless", _ENDLESS, window=100_000)
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).parent / "streaming_server.py"),
        str(settings.models_path),
        str(settings.runtime_dir),
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    pid = int(await server.stdout.readline())
    assert not await ended(pid, within_seconds=0)
    server.kill()
    assert await ended(pid, within_seconds=2)
    await server.wait()


async def test_an_empty_and_an_unreadable_models_path(settings: HuggingFaceSettings) -> None:
    """M2."""
    async with serving(settings) as provider:
        assert await provider.models() == []
        await provider.check()
    path = settings.models_path / "file"
    path.touch()
    async with serving(replace(settings, models_path=path)) as provider:
        for asked in (provider.models(), provider.check(), collect(provider.stream(chat("any")))):
            with pytest.raises(Unavailable, match=f"The models path {path} cannot be read: Not a directory"):
                await asked
