"""The real model: its answers, its tokens, and that a stop stops it."""

import asyncio
import os
import signal
from contextlib import aclosing
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from providers.base import (
    ChatMessage,
    ChatRequest,
    Finished,
    FinishReason,
    GenerationOptions,
    Phase,
    PhaseChanged,
    Role,
    TextDelta,
    UsageReport,
)
from providers.errors import StreamBroken
from providers.huggingface.hardware import choose_precision
from providers.huggingface.provider import HuggingFace
from providers.huggingface.settings import HuggingFaceSettings
from tests.providers.conftest import chat, collect, outcome, text_of
from tests.providers.huggingface.conftest import DEMO, fresh_demo

_QUESTIONS = ("What is the capital of France?", "Tell me a story about the sea.", "Say hello in Japanese 🎌.")


def _ask(question: str) -> ChatMessage:
    return ChatMessage(Role.USER, question)


_CONVERSATION = (
    ChatMessage(Role.SYSTEM, "You are terse."),
    _ask("My name is Ada."),
    ChatMessage(Role.ASSISTANT, "Hello Ada."),
    _ask("What is my name?"),
)


def _options(max_tokens: int) -> GenerationOptions:
    return GenerationOptions(temperature=0, max_tokens=max_tokens)


@pytest.fixture(scope="module")
def weights(demo: HuggingFace, demo_settings: HuggingFaceSettings) -> tuple[Any, Any]:
    """The model and its tokenizer as transformers loads them from the converted folder."""
    dtype = choose_precision("auto", "cpu")
    (folder,) = demo_settings.cache_dir.glob(f"converted/*/*-{str(dtype).removeprefix('torch.')}-*")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


async def test_the_capital_of_france(demo: HuggingFace) -> None:
    events = await collect(demo.stream(chat(DEMO, _QUESTIONS[0], _options(60))))
    assert "Paris" in text_of(events)
    assert isinstance(events[-2], UsageReport)
    assert events[-1] == Finished(FinishReason.STOP)


@pytest.mark.parametrize("conversation", [*((_ask(question),) for question in _QUESTIONS), _CONVERSATION])
async def test_greedy_text_and_usage_are_those_of_generate(
    demo: HuggingFace, weights: tuple[Any, Any], conversation: tuple[ChatMessage, ...]
) -> None:
    model, tokenizer = weights
    prompt = tokenizer.apply_chat_template(
        [{"role": message.role.value, "content": message.content} for message in conversation],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    everything = await asyncio.to_thread(model.generate, **prompt, max_new_tokens=24, do_sample=False)
    tokens = everything[0, prompt["input_ids"].shape[1] :]
    events = await collect(demo.stream(ChatRequest(DEMO, conversation, _options(24))))
    assert text_of(events) == tokenizer.decode(tokens, skip_special_tokens=True)
    assert events[-2] == UsageReport(prompt["input_ids"].shape[1], len(tokens))


async def test_the_first_delta_comes_early_and_one_comes_per_token(demo: HuggingFace) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with aclosing(demo.stream(chat(DEMO, _QUESTIONS[1], _options(60)))) as events:
        times = [loop.time() - begun async for event in events if isinstance(event, TextDelta)]
    assert len(times) >= 50
    assert times[0] < (loop.time() - begun) / 3


async def test_two_requests_at_once_answer_what_each_answers_alone(demo: HuggingFace) -> None:
    alone = [text_of(await collect(demo.stream(chat(DEMO, q, _options(16))))) for q in _QUESTIONS[:2]]
    both = await asyncio.gather(*(collect(demo.stream(chat(DEMO, q, _options(16)))) for q in _QUESTIONS[:2]))
    assert [text_of(events) for events in both] == alone
    assert any(PhaseChanged(Phase.QUEUED, "1 before this one") in events for events in both)


async def test_the_step_counter_stands_still_after_a_stop(demo: HuggingFace) -> None:
    stream = demo.stream(chat(DEMO, _QUESTIONS[1], _options(500)))
    seen = 0
    async for event in stream:
        seen += isinstance(event, TextDelta)
        if seen == 5:
            break
    await stream.aclose()
    at_stop = await demo.status(DEMO)
    after = await collect(demo.stream(chat(DEMO, _QUESTIONS[1], _options(10))))
    assert UsageReport(38, 10) in after
    end = await demo.status(DEMO)
    assert end.steps - at_stop.steps <= 10 + 1
    assert (end.running, end.queued) == (None, 0)


async def test_a_stop_takes_effect_while_the_prompt_is_still_read(demo: HuggingFace) -> None:
    stream = demo.stream(chat(DEMO, "sea " * 4000, _options(10)))
    async for event in stream:
        if event == PhaseChanged(Phase.WAITING):
            break
    before = await demo.status(DEMO)
    await stream.aclose()
    async with asyncio.timeout(5):  # reading all of it takes many times as long
        await collect(demo.stream(chat(DEMO, "Hello", _options(1))))
    assert (await demo.status(DEMO)).steps == before.steps + 1


async def test_a_worker_killed_in_mid_answer_is_replaced(demo_settings: HuggingFaceSettings) -> None:
    async with fresh_demo(demo_settings) as provider:
        stream = provider.stream(chat(DEMO, _QUESTIONS[1], _options(500)))
        async for event in stream:
            if isinstance(event, TextDelta):
                break
        os.kill((await provider.status(DEMO)).pid, signal.SIGKILL)
        _, error = await outcome(stream)
        assert isinstance(error, StreamBroken)
        assert "Paris" in text_of(await collect(provider.stream(chat(DEMO, _QUESTIONS[0], _options(20)))))
