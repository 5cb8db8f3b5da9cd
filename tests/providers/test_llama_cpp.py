"""A real server of OpenAI's protocol: llama.cpp."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import pytest

from providers.base import Finished, FinishReason, GenerationOptions, ModelState, TextDelta, UsageReport
from providers.errors import BadCredentials, ContextTooLong, StreamBroken
from providers.openai import Dialect, OpenAI, OpenAISettings
from tests.providers.conftest import chat, collect, outcome, text_of
from tests.providers.llama_cpp import ALIAS, KEY, WINDOW, llama_cpp
from tests.providers.proxy import FaultProxy

GREEDY = GenerationOptions(temperature=0, max_tokens=40, top_k=40, seed=1)
LONG = GenerationOptions(temperature=0, max_tokens=400)


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    async with llama_cpp() as url:
        yield url


def provider_at(url: str, stream_timeout_seconds: float = 30.0) -> OpenAI:
    settings = OpenAISettings("llama", url, Dialect("llama.cpp"), KEY)
    return OpenAI(replace(settings, stream_timeout_seconds=stream_timeout_seconds))


@pytest.fixture
async def llama(url: str) -> AsyncIterator[OpenAI]:
    provider = provider_at(url)
    yield provider
    await provider.aclose()


async def test_list(llama: OpenAI) -> None:
    await llama.check()
    [info] = await llama.models()
    assert (info.name, info.state) == (ALIAS, ModelState.READY)
    assert info.capabilities.max_context_tokens == WINDOW
    assert info.capabilities.vision is False
    assert info.metadata.parameters == 134_515_008
    assert info.metadata.quantization == "Q4_1"
    assert info.metadata.updated_at is None


async def test_answer_and_usage_are_the_servers(llama: OpenAI, url: str) -> None:
    events = await collect(llama.stream(chat(ALIAS, "What is the capital of France?", GREEDY)))
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        answer = await client.post(
            f"{url}/chat/completions",
            headers={"authorization": f"Bearer {KEY}"},
            json={
                "model": ALIAS,
                "messages": [{"role": "user", "content": "What is the capital of France?"}],
                "temperature": 0,
                "max_tokens": 40,
                "top_k": 40,
                "seed": 1,
            },
        )
    whole = answer.json()
    assert text_of(events) == whole["choices"][0]["message"]["content"]
    usage = whole["usage"]
    assert events[-2] == UsageReport(usage["prompt_tokens"], usage["completion_tokens"])
    assert isinstance(events[-1], Finished)


async def test_length_and_stop(llama: OpenAI) -> None:
    count = "Count from one to twenty in words."
    short = GenerationOptions(temperature=0, max_tokens=5)
    events = await collect(llama.stream(chat(ALIAS, count, short)))
    assert events[-1] == Finished(FinishReason.LENGTH)
    assert isinstance(events[-2], UsageReport)
    assert events[-2].completion_tokens == 5
    stop = text_of(events).split()[1]
    stopped = await collect(
        llama.stream(chat(ALIAS, count, GenerationOptions(temperature=0, max_tokens=40, stop=(stop,))))
    )
    assert text_of(stopped).strip() == text_of(events).partition(stop)[0].strip()
    assert stopped[-1] == Finished(FinishReason.STOP)


async def test_too_long(llama: OpenAI) -> None:
    with pytest.raises(ContextTooLong, match="exceeds the available context size"):
        await collect(llama.stream(chat(ALIAS, "word " * 1000)))


async def test_wrong_key(url: str) -> None:
    provider = OpenAI(OpenAISettings("llama", url, Dialect("llama.cpp"), "sk-wrong-0123456789"))
    with pytest.raises(BadCredentials) as caught:
        await collect(provider.stream(chat(ALIAS)))
    assert "sk-wrong" not in caught.value.message
    await provider.aclose()


def _proxy(url: str) -> FaultProxy:
    target = urlsplit(url)
    return FaultProxy(target.hostname or "", target.port or 0)


async def test_closing_reaches_the_server_at_once(url: str) -> None:
    """C7: whoever closes the stream, or cancels who reads it, closes the connection within 100 ms."""
    async with _proxy(url).running() as proxy:
        provider = provider_at(f"{proxy.url}/v1")
        clock = asyncio.get_running_loop().time
        async with aclosing(provider.stream(chat(ALIAS, "Tell me a long story.", LONG))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
            closed = clock()
        assert clock() - closed < 0.1
        await proxy.wait_for(lambda proxy: len(proxy.client_closed_at) == 1, timeout_seconds=1)
        assert proxy.client_closed_at[0] - closed < 0.1

        reading = asyncio.create_task(collect(provider.stream(chat(ALIAS, "Tell me a long story.", LONG))))
        seen = proxy.bytes_to_client
        await proxy.wait_for(lambda proxy: proxy.bytes_to_client > seen + 500, timeout_seconds=30)
        cancelled = clock()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await proxy.wait_for(lambda proxy: len(proxy.client_closed_at) == 2, timeout_seconds=1)
        assert proxy.client_closed_at[1] - cancelled < 0.1
        await provider.aclose()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda proxy: proxy.cut(), "broke the connection"),
        (lambda proxy: proxy.cut(abruptly=False), "broke the connection"),
        (lambda proxy: proxy.stall(), "sent nothing for 0.5 s"),
        (lambda proxy: proxy.garble(), "not what its API sends"),
    ],
    ids=["reset", "closed", "stalled", "garbled"],
)
async def test_fault_in_mid_reply(url: str, fault: Callable[[FaultProxy], None], says: str) -> None:
    async with _proxy(url).running() as proxy:
        provider = provider_at(f"{proxy.url}/v1", stream_timeout_seconds=0.5)
        events = provider.stream(chat(ALIAS, "Tell me a long story.", LONG))
        seen, error = await outcome(events, on_text=lambda: fault(proxy))
        assert text_of(seen)
        assert type(error) is StreamBroken
        assert says in error.message
        await provider.aclose()
