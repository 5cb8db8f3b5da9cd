"""Ollama's native API: replayed byte for byte, broken in every way, and the real one."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import aclosing
from itertools import pairwise
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers import errors
from providers.base import (
    ChatMessage,
    ChatRequest,
    Finished,
    FinishReason,
    GenerationOptions,
    LoadedModel,
    ModelInfo,
    ModelState,
    ModelType,
    Phase,
    PhaseChanged,
    ProviderEvent,
    ReasoningDelta,
    Role,
    TextDelta,
    UsageReport,
)
from providers.errors import LoadFailed, ModelNotFound, ProviderError, StreamBroken, TimedOut, Unavailable
from providers.http import Upstream
from providers.ollama import Ollama, OllamaSettings, host_url, parameter_count
from tests.providers.conftest import chat, collect, outcome, text_of
from tests.providers.proxy import FaultProxy
from tests.providers.replay import Break, Piece, ReplayServer, answer, ndjson, replay_server, stream

REPLY = ndjson(
    {"message": {"role": "assistant", "content": "", "thinking": "The user"}, "done": False},
    {"message": {"role": "assistant", "content": "It is", "images": None}, "done": False},
    {"message": {"role": "assistant", "content": " 391 €😀."}, "done": False, "remote_model": "x"},
    {
        "message": {"role": "assistant", "content": "!"},
        "done": True,
        "done_reason": "stop",
        "total_duration": 2650123000,
        "prompt_eval_count": 31,
        "eval_count": 18,
    },
)
EVENTS: list[ProviderEvent] = [
    PhaseChanged(Phase.WAITING),
    ReasoningDelta("The user"),
    TextDelta("It is"),
    TextDelta(" 391 €😀."),
    TextDelta("!"),
    UsageReport(31, 18),
    Finished(FinishReason.STOP),
]
BEGUN = ndjson({"message": {"role": "assistant", "content": "It is"}, "done": False})


def provider_at(url: str) -> Ollama:
    return Ollama(
        OllamaSettings(
            url,
            connect_timeout_seconds=0.2,
            first_token_timeout_seconds=0.3,
            stream_timeout_seconds=0.2,
            list_timeout_seconds=0.4,
        )
    )


async def replayed(server: ReplayServer, *pieces: Piece) -> list[ProviderEvent]:
    server.answers["/api/chat"] = pieces
    provider = provider_at(server.url)
    try:
        return await collect(provider.stream(chat("m")))
    finally:
        await provider.aclose()


async def failure(server: ReplayServer, *pieces: Piece) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await replayed(server, *pieces)
    return caught.value


def split(data: bytes, cuts: set[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


async def test_reply(server: ReplayServer) -> None:
    assert await replayed(server, *stream([REPLY])) == EVENTS


async def test_reply_byte_by_byte(server: ReplayServer) -> None:
    assert await replayed(server, *stream(split(REPLY, set(range(len(REPLY)))))) == EVENTS


@settings(max_examples=40)
@given(st.sets(st.integers(1, len(REPLY) - 1)))
async def test_reply_is_the_same_however_it_is_cut(cuts: set[int]) -> None:
    async with replay_server() as server:
        assert await replayed(server, *stream(split(REPLY, cuts))) == EVENTS


@settings(max_examples=60)
@given(st.binary(max_size=200), st.integers(0, len(REPLY)))
async def test_fuzzed_bytes_end_the_reply_or_are_blanks(junk: bytes, where: int) -> None:
    """Junk in the bytes is an error or leaves a whole reply; it never crashes, hangs or half succeeds."""
    async with replay_server() as server:
        server.answers["/api/chat"] = stream([REPLY[:where] + junk + REPLY[where:]])
        provider = provider_at(server.url)
        events, error = await outcome(provider.stream(chat("m")))
        await provider.aclose()
    assert isinstance(events[-1], Finished) != isinstance(error, Unavailable | StreamBroken)


async def test_request(server: ReplayServer) -> None:
    server.answers["/api/chat"] = stream([REPLY])
    options = GenerationOptions(
        temperature=0, top_p=0.9, top_k=40, max_tokens=60, seed=7, stop=("\n\n", "END")
    )
    messages = (
        ChatMessage(Role.SYSTEM, "Be brief."),
        ChatMessage(Role.USER, "Héllo"),
        ChatMessage(Role.ASSISTANT, "Hi"),
        ChatMessage(Role.USER, "Again"),
    )
    provider = provider_at(server.url)
    await collect(provider.stream(ChatRequest("m", messages, options)))
    await collect(provider.stream(chat("m", "plain")))
    await provider.aclose()
    first, second = (json.loads(request.body) for request in server.received)
    assert first == {
        "model": "m",
        "stream": True,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Héllo"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "Again"},
        ],
        "options": {
            "temperature": 0,
            "top_p": 0.9,
            "top_k": 40,
            "num_predict": 60,
            "seed": 7,
            "stop": ["\n\n", "END"],
        },
    }
    assert second["options"] == {}
    assert server.connections == 1


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({"done_reason": "length", "eval_count": 5}, [UsageReport(None, 5), Finished(FinishReason.LENGTH)]),
        ({}, [UsageReport(None, None), Finished(FinishReason.STOP)]),
    ],
)
async def test_end_of_old_servers(
    server: ReplayServer, last: dict[str, object], expected: list[ProviderEvent]
) -> None:
    events = await replayed(server, *stream([BEGUN, ndjson({"done": True, **last})]))
    assert events[-2:] == expected


async def test_last_line_needs_no_newline(server: ReplayServer) -> None:
    assert await replayed(server, *stream([REPLY[:-1]])) == EVENTS


async def test_reply_counts_although_the_body_never_ends(server: ReplayServer) -> None:
    assert await replayed(server, *stream([REPLY], Break.HOLD)) == EVENTS


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (400, '"m" does not support vision', errors.CapabilityMissing),
        (400, "the prompt is longer than the context length currently available", errors.ContextTooLong),
        (400, "model is required", errors.BadRequest),
        (401, "unauthorized", errors.BadCredentials),
        (404, "model 'm' not found", errors.ModelNotFound),
        (429, "too many requests", errors.Overloaded),
        (500, "model requires more system memory (5.6 GiB) than is available", errors.OutOfMemory),
        (500, "llama runner process has terminated: exit status 2", errors.Unavailable),
        (500, "unable to load model: sha256-1", errors.LoadFailed),
        (503, "server busy, please try again.  maximum pending requests exceeded", errors.Overloaded),
    ],
)
async def test_error_before_output(
    server: ReplayServer, status: int, text: str, expected: type[ProviderError]
) -> None:
    error = await failure(server, answer({"error": text}, status=status))
    assert type(error) is expected
    assert " ".join(text.split()) in error.message


@pytest.mark.parametrize("ending", [(), (Break.RESET,), (Break.CLOSE,), (Break.HOLD,)], ids=str)
@pytest.mark.parametrize(
    ("begun", "expected"), [(b"", Unavailable), (BEGUN, StreamBroken)], ids=["before", "after"]
)
async def test_no_terminal_marker(
    server: ReplayServer, begun: bytes, ending: tuple[Piece, ...], expected: type[ProviderError]
) -> None:
    error = await failure(server, *stream([begun] if begun else [], *ending))
    waited = ending == (Break.HOLD,) and not begun
    assert type(error) is (TimedOut if waited else expected)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (ndjson({"error": "an error was encountered: unexpected EOF"}), "unexpected EOF"),
        (ndjson({"error": {"message": "deep"}, "message": 5}), "deep"),
        (ndjson({"message": {"content": 5}}), "not what its API sends"),
        (b"<html>\n", "not what its API sends"),
        (b'{"message":{"content":"\xff"}}\n', "not what its API sends"),
        (b"[" * 100_000 + b"\n", "not what its API sends"),
        (b'{"message":{"content":"cut off', "not what its API sends"),
        (b"x" * 1_100_000, "a line of more than"),
        (ndjson({"done": True, "done_reason": "load"}), "without completing it"),
    ],
    ids=["error", "error object", "type", "html", "utf-8", "nesting", "cut", "huge", "load"],
)
@pytest.mark.parametrize(
    ("begun", "expected"), [(b"", Unavailable), (BEGUN, StreamBroken)], ids=["before", "after"]
)
async def test_what_no_reply_has(
    server: ReplayServer, line: bytes, says: str, begun: bytes, expected: type[ProviderError]
) -> None:
    error = await failure(server, *stream([begun + line]))
    assert type(error) is expected
    assert says in error.message


async def test_error_after_the_first_token_is_never_for_the_next_candidate(server: ReplayServer) -> None:
    error = await failure(server, *stream([BEGUN, ndjson({"error": "CUDA error: out of memory"})]))
    assert type(error) is StreamBroken
    assert "out of memory" in error.message


async def test_text_before_the_break_was_passed_on(server: ReplayServer) -> None:
    server.answers["/api/chat"] = stream([BEGUN], Break.RESET)
    provider = provider_at(server.url)
    seen, error = await outcome(provider.stream(chat("m")))
    assert seen == [PhaseChanged(Phase.WAITING), TextDelta("It is")]
    assert type(error) is StreamBroken
    await provider.aclose()


async def test_html_page(server: ReplayServer) -> None:
    page = answer(b"<html>Bad gateway</html>", status=502, headers={"content-type": "text/html"})
    error = await failure(server, page)
    assert type(error) is Unavailable
    assert error.message == f"Ollama at {server.url} answered: HTTP 502"


async def test_refused(closed_port: str) -> None:
    provider = provider_at(closed_port)
    for attempt in (collect(provider.stream(chat("m"))), provider.models(), provider.check()):
        with pytest.raises(Unavailable, match="cannot be reached"):
            await attempt
    await provider.aclose()


async def test_black_hole(black_hole: str) -> None:
    provider = provider_at(black_hole)
    for attempt in (collect(provider.stream(chat("m"))), provider.models(), provider.check()):
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await attempt
        assert time.monotonic() - began < 1
    await provider.aclose()


TAG = {
    "name": "llava:7b",
    "model": "llava:7b",
    "modified_at": "2026-10-01T10:00:00.123456789+02:00",
    "size": 2600000000,
    "digest": "ab12",
    "details": {"family": "llama", "parameter_size": "7.2B", "quantization_level": "Q4_0"},
}
SHOW = {
    "license": "\n  Community License Agreement\nmore",
    "model_info": {"general.architecture": "llama", "llama.context_length": 32768},
    "capabilities": ["completion", "vision"],
}


async def test_list(server: ReplayServer) -> None:
    embedder = TAG | {"name": "embed:latest", "digest": "cd34", "capabilities": ["embedding"]}
    unknown = TAG | {"name": "old:latest", "digest": "ef56"}
    server.answers["/api/tags"] = (answer({"models": [TAG, embedder, unknown]}),)
    server.answers["/api/ps"] = (answer({"models": [TAG]}),)
    server.answers["/api/show"] = (answer(SHOW),)
    provider = provider_at(server.url)
    first = await provider.models()
    requests = len(server.received)
    assert await provider.models() == first
    await provider.aclose()
    info = first[0]
    assert (info.name, info.type, info.state) == ("llava:7b", ModelType.VISION, ModelState.READY)
    assert info.residency == LoadedModel("llava:7b", memory_bytes=info.metadata.size_bytes)
    assert info.source == server.url
    assert info.capabilities.max_context_tokens == 32768
    assert info.capabilities.vision is True
    assert info.capabilities.tools is False
    assert info.metadata.parameters == 7_200_000_000
    assert info.metadata.license == "Community License Agreement"
    assert info.metadata.quantization == "Q4_0"
    assert (first[1].state, first[1].residency) == (ModelState.COLD, None)
    assert requests == 5
    assert server.paths()[requests:] == ["/api/tags", "/api/ps"]


async def test_models_that_cannot_chat_are_hidden(server: ReplayServer) -> None:
    embedder = TAG | {"name": "embed:latest", "capabilities": ["embedding"]}
    server.answers["/api/tags"] = (answer({"models": [TAG, embedder]}),)
    provider = provider_at(server.url)
    assert [info.name for info in await provider.models()] == ["llava:7b"]
    await provider.aclose()


@pytest.mark.parametrize(
    "broken", [(Break.HOLD,), (Break.RESET,), (answer({"error": "x"}, status=500),), (answer(b"<html>"),)]
)
async def test_details_that_cannot_be_had_cost_nothing_but_themselves(
    server: ReplayServer, broken: tuple[Piece, ...]
) -> None:
    server.answers = {"/api/tags": (answer({"models": [TAG]}),), "/api/ps": broken, "/api/show": broken}
    provider = provider_at(server.url)
    [info] = await provider.models()
    assert info.capabilities.vision is None
    assert info.metadata.parameters == 7_200_000_000
    assert info.state is ModelState.COLD
    server.answers["/api/show"] = (answer(SHOW),)
    [info] = await provider.models()
    assert info.capabilities.vision is True
    await provider.aclose()


async def test_empty_list(server: ReplayServer) -> None:
    server.answers["/api/tags"] = (answer({"models": None}),)
    provider = provider_at(server.url)
    assert await provider.models() == []
    await provider.aclose()


@pytest.mark.parametrize(
    ("size", "expected"),
    [("134.52M", 134_520_000), ("7B", 7_000_000_000), ("500K", 500_000), ("big", None), (None, None)],
)
def test_parameter_count(size: str | None, expected: int | None) -> None:
    assert parameter_count(size) == expected


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("example.org", "http://example.org:11434"),
        ("example.org:1234", "http://example.org:1234"),
        (":1234", "http://127.0.0.1:1234"),
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:5", "http://127.0.0.1:5"),
        ("http://0.0.0.0:5", "http://127.0.0.1:5"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::]:5", "http://[::1]:5"),
        ("http://example.org", "http://example.org:80"),
        ("https://example.org", "https://example.org:443"),
        ("https://example.org:8443/ollama/", "https://example.org:8443/ollama"),
        ("example.org/ollama", "http://example.org:11434/ollama"),
        ("https://me:pass@example.org", "https://me:pass@example.org:443"),
        (" gpu_box ", "http://gpu_box:11434"),
        ("bücher.example", "http://xn--bcher-kva.example:11434"),
    ],
)
def test_host_url(host: str, url: str) -> None:
    assert host_url(host) == url


@pytest.mark.parametrize(
    "host",
    [
        "ftp://x",
        "http://x:port",
        "x:99999",
        "a b",
        "x?y",
        "\x1b@",
        "x#y",
        "a..b",
        "x" * 64,
        "-:-:-",
        "<>",
    ],
)
def test_host_url_of_nonsense(host: str) -> None:
    with pytest.raises(ValueError, match="expected host, host:port or"):
        host_url(host)


def test_password_is_in_no_message() -> None:
    with pytest.raises(ValueError, match="port") as caught:
        host_url("http://me:secret@x:port")
    settings = OllamaSettings(host_url("http://me:secret@x:1"))
    assert "secret" not in str(caught.value) + repr(settings) + Ollama(settings)._upstream.label


@given(st.text() | st.from_regex(r"(https?://)?[\w.:@\[\]/%-]*", fullmatch=True))
def test_host_url_makes_urls_that_can_be_used(host: str) -> None:
    try:
        url = host_url(host)
    except ValueError:
        return
    assert urlsplit(url).port is not None
    Upstream(url, name="Test", connect_timeout_seconds=1)


def test_find_adds_latest() -> None:
    provider = provider_at("http://127.0.0.1:1")
    listed = [_named("a:latest"), _named("b:1b")]
    assert provider.find("a", listed) is listed[0]
    assert provider.find("b:1b", listed) is listed[1]
    assert provider.find("b", listed) is None


def _named(name: str) -> ModelInfo:
    return ModelInfo(name=name, source="s", display_name=name)


GREEDY = GenerationOptions(temperature=0, max_tokens=40)


async def test_real_greedy_answer(ollama: Ollama) -> None:
    request = chat("smollm2:135m", "What is the capital of France?", GREEDY)
    first, second = [await collect(ollama.stream(request)) for _ in range(2)]
    text = text_of(first)
    assert "Paris" in text
    assert first[0] == PhaseChanged(Phase.WAITING)
    assert isinstance(first[-1], Finished)
    usage = first[-2]
    assert isinstance(usage, UsageReport)
    assert usage.completion_tokens is not None
    assert len([event for event in first if isinstance(event, TextDelta)]) <= usage.completion_tokens <= 40
    assert text == text_of(second)


async def test_real_length_and_stop(ollama: Ollama) -> None:
    count = "Count from one to twenty in words."
    short = await collect(
        ollama.stream(chat("smollm2:135m", count, GenerationOptions(temperature=0, max_tokens=5)))
    )
    assert short[-2:] == [UsageReport(_prompt_tokens(short), 5), Finished(FinishReason.LENGTH)]
    whole = text_of(short)
    stop = whole.split()[1]
    options = GenerationOptions(temperature=0, max_tokens=40, stop=(stop,))
    stopped = await collect(ollama.stream(chat("smollm2:135m", count, options)))
    text = text_of(stopped)
    assert text.strip() == whole.partition(stop)[0].strip()
    assert stopped[-1] == Finished(FinishReason.STOP)


def _prompt_tokens(events: list[ProviderEvent]) -> int | None:
    [usage] = [event for event in events if isinstance(event, UsageReport)]
    assert usage.prompt_tokens
    return usage.prompt_tokens


async def test_real_end_without_marker(ollama: Ollama) -> None:
    """This server gives up on a token that repeats 30 times, and says nothing about it."""
    zeros = "0" * 46
    messages = (
        ChatMessage(Role.USER, zeros),
        ChatMessage(Role.ASSISTANT, "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"),
        ChatMessage(Role.USER, zeros),
    )
    options = GenerationOptions(temperature=0, max_tokens=120)
    seen, error = await outcome(ollama.stream(ChatRequest("smollm2:135m", messages, options)))
    assert "0" * 25 in text_of(seen)
    assert type(error) is StreamBroken
    assert "without completing it" in error.message


async def test_real_list(ollama: Ollama) -> None:
    await ollama.check()
    infos = {info.name: info for info in await ollama.models()}
    info = infos["smollm2:135m"]
    assert "smollm2:second" in infos
    assert info.capabilities.max_context_tokens == 8192
    assert info.capabilities.vision is None
    assert info.capabilities.languages == ("en",)
    assert info.metadata.parameters == 134_515_008
    assert info.metadata.architecture == "llama"
    assert info.metadata.license == "apache-2.0"
    assert info.metadata.size_bytes == 98_362_982
    assert info.metadata.updated_at is not None


async def test_real_unknown_model(ollama: Ollama) -> None:
    with pytest.raises(ModelNotFound, match="nothing:here"):
        await collect(ollama.stream(chat("nothing:here")))


LONG = GenerationOptions(temperature=0, max_tokens=400)


async def test_real_closing_reaches_the_server_at_once(ollama_url: str) -> None:
    """C7: whoever closes the stream, or cancels who reads it, closes the connection within 100 ms."""
    target = urlsplit(ollama_url)
    async with FaultProxy(target.hostname or "", target.port or 0).running() as proxy:
        provider = Ollama(OllamaSettings(proxy.url))
        clock = asyncio.get_running_loop().time

        events = provider.stream(chat("smollm2:135m", "Tell me a long story.", LONG))
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TextDelta):
                    break
            closed = clock()
        assert clock() - closed < 0.1
        await proxy.wait_for(lambda proxy: len(proxy.client_closed_at) == 1, timeout_seconds=1)
        assert proxy.client_closed_at[0] - closed < 0.1

        reading = asyncio.create_task(
            collect(provider.stream(chat("smollm2:135m", "Tell me a long story.", LONG)))
        )
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
async def test_real_fault_in_mid_reply(
    ollama_url: str, fault: Callable[[FaultProxy], None], says: str
) -> None:
    target = urlsplit(ollama_url)
    async with FaultProxy(target.hostname or "", target.port or 0).running() as proxy:
        provider = Ollama(OllamaSettings(proxy.url, stream_timeout_seconds=0.5))
        events = provider.stream(chat("smollm2:135m", "Tell me a long story.", LONG))
        seen, error = await outcome(events, on_text=lambda: fault(proxy))
        assert text_of(seen)
        assert type(error) is StreamBroken
        assert says in error.message
        await provider.aclose()


async def load(provider: Ollama, model: str) -> list[PhaseChanged]:
    async with aclosing(provider.load(model)) as phases:
        return [phase async for phase in phases]


async def test_loading_and_unloading_are_requests_without_a_prompt(server: ReplayServer) -> None:
    server.answers["/api/generate"] = (answer({"done": True, "done_reason": "load"}),)
    server.answers["/api/ps"] = (answer({"models": [{"name": "other", "size": 7}]}),)
    provider = Ollama(OllamaSettings(server.url))
    assert await load(provider, "m") == [PhaseChanged(Phase.LOADING_MODEL)]
    await provider.unload("m")
    assert await provider.loaded() == [LoadedModel("other", memory_bytes=7)]
    bodies = [json.loads(request.body) for request in server.received if request.path == "/api/generate"]
    assert bodies == [{"model": "m", "stream": False}, {"model": "m", "stream": False, "keep_alive": 0}]
    await provider.aclose()


async def test_unloading_waits_only_a_while_for_what_is_still_used(server: ReplayServer) -> None:
    server.answers["/api/generate"] = (answer({"done": True, "done_reason": "unload"}),)
    server.answers["/api/ps"] = (answer({"models": [{"name": "m"}]}),)
    provider = Ollama(OllamaSettings(server.url, list_timeout_seconds=0.2))
    async with asyncio.timeout(1):
        await provider.unload("m")
    assert server.paths().count("/api/ps") > 1
    await provider.aclose()


async def test_a_model_that_cannot_be_loaded(server: ReplayServer) -> None:
    said = {"error": "unable to load model: /models/blobs/sha256-1"}
    server.answers["/api/generate"] = (answer(said, status=500),)
    provider = Ollama(OllamaSettings(server.url))
    with pytest.raises(LoadFailed, match="unable to load model"):
        await load(provider, "m")
    await provider.aclose()


async def test_real_load_and_unload(ollama: Ollama) -> None:
    async def loaded() -> set[str]:
        return {model.name for model in await ollama.loaded()}

    await ollama.unload("smollm2:135m")  # the same weights, which are in memory under one name
    await load(ollama, "smollm2:second")
    assert "smollm2:second" in await loaded()
    await ollama.unload("smollm2:second")
    assert "smollm2:second" not in await loaded()
    for order in (load(ollama, "nothing:here"), ollama.unload("nothing:here")):
        with pytest.raises(ModelNotFound, match="nothing:here"):
            await order
