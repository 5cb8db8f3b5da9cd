"""Anthropic's Messages API: replayed byte for byte, and broken in every way that it can."""

import asyncio
import json
import logging
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import pairwise
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers import errors
from providers.anthropic import Anthropic, AnthropicSettings
from providers.base import (
    ChatMessage,
    ChatRequest,
    Finished,
    FinishReason,
    GenerationOptions,
    ModelCapabilities,
    ModelInfo,
    ModelMetadata,
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
from providers.errors import (
    CapabilityMissing,
    ContentFiltered,
    ProviderError,
    StreamBroken,
    TimedOut,
    Unavailable,
)
from tests.providers.conftest import chat, collect, outcome, text_of
from tests.providers.proxy import FaultProxy
from tests.providers.replay import Break, Piece, ReplayServer, answer, replay_server, stream

KEY = "sk-ant-api03-secret"
PATH = "/v1/messages"


def event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields}, ensure_ascii=False)}\n\n".encode()


def text(piece: str) -> bytes:
    return event("content_block_delta", index=1, delta={"type": "text_delta", "text": piece})


def end(reason: str | None, **details: object) -> bytes:
    return event(
        "message_delta",
        delta={"stop_reason": reason, "stop_sequence": None, **details},
        usage={"output_tokens": 42},
    )


START = event(
    "message_start",
    message={
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 30,
            "cache_creation_input_tokens": 5,
            "cache_read_input_tokens": 100,
            "output_tokens": 1,
        },
    },
)
STOP = event("message_stop")
REPLY = b"".join(
    (
        START,
        event(
            "content_block_start",
            index=0,
            content_block={"type": "thinking", "thinking": "", "signature": ""},
        ),
        event("ping"),
        event(
            "content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Adding the numbers"}
        ),
        event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "EqQB..."}),
        event("content_block_stop", index=0),
        event("content_block_start", index=1, content_block={"type": "text", "text": ""}),
        text("It is"),
        event("something_new", index=1, novelty=[1, 2]),
        event("content_block_delta", index=1, delta={"type": "citations_delta", "citation": {"text": "no"}}),
        text(' 391 €😀, "error" and all.'),
        event("content_block_stop", index=1),
        end("end_turn"),
        STOP,
    )
)
EVENTS: list[ProviderEvent] = [
    PhaseChanged(Phase.WAITING),
    UsageReport(135, None),
    ReasoningDelta("Adding the numbers"),
    TextDelta("It is"),
    TextDelta(' 391 €😀, "error" and all.'),
    UsageReport(135, 42),
    Finished(FinishReason.STOP),
]
BEGUN = START + text("It is")


def provider_at(url: str) -> Anthropic:
    return Anthropic(
        AnthropicSettings(
            url,
            KEY,
            connect_timeout_seconds=0.2,
            first_token_timeout_seconds=0.3,
            stream_timeout_seconds=0.2,
            list_timeout_seconds=0.4,
        )
    )


async def replayed(
    server: ReplayServer, *pieces: Piece, request: ChatRequest | None = None
) -> tuple[list[ProviderEvent], ProviderError | None]:
    server.answers[PATH] = pieces
    provider = provider_at(server.url)
    try:
        return await outcome(provider.stream(request or chat("claude-x")))
    finally:
        await provider.aclose()


def split(data: bytes, cuts: set[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


async def test_reply(server: ReplayServer) -> None:
    assert await replayed(server, *stream([REPLY])) == (EVENTS, None)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
async def test_reply_byte_by_byte(server: ReplayServer, line_end: bytes) -> None:
    data = REPLY.replace(b"\n", line_end)
    assert await replayed(server, *stream(split(data, set(range(len(data)))))) == (EVENTS, None)


@settings(max_examples=40)
@given(st.sets(st.integers(1, len(REPLY) - 1)))
async def test_reply_is_the_same_however_it_is_cut(cuts: set[int]) -> None:
    async with replay_server() as server:
        assert await replayed(server, *stream(split(REPLY, cuts))) == (EVENTS, None)


@settings(max_examples=60)
@given(st.binary(max_size=200), st.integers(0, len(REPLY)))
async def test_fuzzed_bytes_never_crash_or_hang(junk: bytes, where: int) -> None:
    async with replay_server() as server:
        events, error = await replayed(server, *stream([REPLY[:where] + junk + REPLY[where:]]))
    assert isinstance(events[-1], Finished) != isinstance(error, Unavailable | StreamBroken)


async def test_request(server: ReplayServer) -> None:
    server.answers[PATH] = stream([REPLY])
    options = GenerationOptions(temperature=0, top_p=0.9, top_k=40, max_tokens=60, seed=7, stop=("\n\nEND",))
    messages = (
        ChatMessage(Role.SYSTEM, "Be brief."),
        ChatMessage(Role.USER, "Héllo"),
        ChatMessage(Role.ASSISTANT, "Hi"),
        ChatMessage(Role.ASSISTANT, " \n"),
        ChatMessage(Role.USER, "Again"),
        ChatMessage(Role.USER, "and again"),
    )
    provider = provider_at(server.url)
    await collect(provider.stream(ChatRequest("claude-x", messages, options)))
    await collect(provider.stream(chat("claude-x", "plain")))
    await provider.aclose()
    first, second = server.received
    assert (first.method, first.path) == ("POST", "/v1/messages")
    assert first.headers["x-api-key"] == KEY
    assert first.headers["anthropic-version"] == "2023-06-01"
    assert first.headers["content-type"] == "application/json"
    assert json.loads(first.body) == {
        "model": "claude-x",
        "stream": True,
        "max_tokens": 60,
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Héllo"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Again"}, {"type": "text", "text": "and again"}],
            },
        ],
        "temperature": 0,
        "top_k": 40,
        "stop_sequences": ["\n\nEND"],
    }
    assert json.loads(second.body) == {
        "model": "claude-x",
        "stream": True,
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "plain"}]}],
    }
    assert server.connections == 1


async def test_a_temperature_above_its_range_is_its_highest(server: ReplayServer) -> None:
    request = chat("claude-x", options=GenerationOptions(temperature=1.7))
    await replayed(server, *stream([REPLY]), request=request)
    assert json.loads(server.received[0].body)["temperature"] == 1.0


async def test_top_p_goes_where_no_temperature_does(server: ReplayServer) -> None:
    await replayed(server, *stream([REPLY]), request=chat("claude-x", options=GenerationOptions(top_p=0.5)))
    assert json.loads(server.received[0].body)["top_p"] == 0.5


@pytest.mark.parametrize(
    "refusal",
    [
        "`temperature` is deprecated for this model.",
        "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
        "`top_k` must be unset when thinking is enabled or in adaptive mode.",
    ],
)
async def test_a_model_that_is_not_to_be_told_how_to_sample(server: ReplayServer, refusal: str) -> None:
    server.answers[PATH] = (answer(said("invalid_request_error", refusal), status=400),)
    provider = provider_at(server.url)
    options = GenerationOptions(temperature=0.5, top_k=5, max_tokens=9)
    _, error = await outcome(provider.stream(chat("claude-x", options=options)))
    assert isinstance(error, errors.BadRequest)
    server.answers[PATH] = stream([REPLY])
    assert await collect(provider.stream(chat("claude-x", options=options))) == EVENTS
    await collect(provider.stream(chat("claude-old", options=options)))
    await provider.aclose()
    bodies = [json.loads(request.body) for request in server.received]
    assert [body.get("temperature") for body in bodies] == [0.5, None, None, 0.5]
    assert [body.get("top_k") for body in bodies] == [5, None, None, 5]
    assert all(body["max_tokens"] == 9 for body in bodies)


async def test_nothing_is_asked_again_once_a_reply_began(server: ReplayServer) -> None:
    refusal = {"type": "invalid_request_error", "message": "`temperature` is deprecated for this model."}
    server.answers[PATH] = stream([BEGUN + event("error", error=refusal)])
    provider = provider_at(server.url)
    seen, error = await outcome(provider.stream(chat("claude-x")))
    assert text_of(seen) == "It is"
    assert isinstance(error, errors.BadRequest)
    assert len(server.received) == 1
    await provider.aclose()


async def test_no_request_for_a_stop_string_that_it_does_not_take(server: ReplayServer) -> None:
    request = chat("claude-x", options=GenerationOptions(stop=("END", "\n\n")))
    _, error = await replayed(server, *stream([REPLY]), request=request)
    assert type(error) is CapabilityMissing
    assert server.received == []


async def test_a_base_url_that_names_the_version_too(server: ReplayServer) -> None:
    server.answers["/proxy/v1/messages"] = stream([REPLY])
    provider = provider_at(f"{server.url}/proxy/v1/")
    assert await collect(provider.stream(chat("claude-x"))) == EVENTS
    await provider.aclose()


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", FinishReason.STOP),
        ("stop_sequence", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("model_context_window_exceeded", FinishReason.LENGTH),
    ],
)
async def test_finish(server: ReplayServer, reason: str, expected: FinishReason) -> None:
    events, error = await replayed(server, *stream([BEGUN, end(reason), STOP]))
    assert error is None
    assert events[-2:] == [UsageReport(135, 42), Finished(expected)]


async def test_later_usage_replaces_what_came_first(server: ReplayServer) -> None:
    usage = {"input_tokens": 31, "cache_read_input_tokens": None, "output_tokens": 7}
    last = event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
    events, _ = await replayed(server, *stream([BEGUN, last, STOP]))
    assert UsageReport(136, 7) in events


@pytest.mark.parametrize(
    ("details", "says"),
    [
        (
            {"type": "refusal", "category": "bio", "explanation": "That would be harmful."},
            "That would be harmful.",
        ),
        ({"type": "refusal", "category": "bio", "explanation": None}, "refused: bio"),
        (None, "refused"),
    ],
)
@pytest.mark.parametrize("begun", [START, BEGUN], ids=["before", "after"])
async def test_refusal_is_one_and_not_an_empty_success(
    server: ReplayServer, begun: bytes, details: object, says: str
) -> None:
    events, error = await replayed(server, *stream([begun, end("refusal", stop_details=details), STOP]))
    assert type(error) is ContentFiltered
    assert says in error.message
    assert events[-1] == UsageReport(135, 42)


@pytest.mark.parametrize(("begun", "expected"), [(START, Unavailable), (BEGUN, StreamBroken)])
@pytest.mark.parametrize("reason", ["pause_turn", "tool_use", "something_new"])
async def test_end_that_is_no_success(
    server: ReplayServer, reason: str, begun: bytes, expected: type[ProviderError]
) -> None:
    _, error = await replayed(server, *stream([begun, end(reason), STOP]))
    assert type(error) is expected
    assert reason in error.message


async def test_reply_counts_although_the_body_never_ends(server: ReplayServer) -> None:
    assert await replayed(server, *stream([REPLY], Break.HOLD)) == (EVENTS, None)


@pytest.mark.parametrize("ending", [(), (Break.RESET,), (Break.CLOSE,), (Break.HOLD,)], ids=str)
@pytest.mark.parametrize("last", [b"", end(None), end("end_turn"), end(None) + STOP])
@pytest.mark.parametrize("begun", [b"", START, BEGUN], ids=["nothing", "start", "text"])
async def test_no_terminal_marker(
    server: ReplayServer, begun: bytes, last: bytes, ending: tuple[Piece, ...]
) -> None:
    events, error = await replayed(server, *stream([begun + last] if begun + last else [], *ending))
    assert isinstance(error, StreamBroken if begun == BEGUN else Unavailable)
    assert text_of(events) == ("It is" if begun == BEGUN else "")


async def test_silence_is_a_failure_in_time(server: ReplayServer) -> None:
    _, error = await replayed(server, Break.HOLD)
    assert type(error) is TimedOut


def said(kind: str, message: str) -> dict[str, object]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


FAULTS = [
    (400, "invalid_request_error", "max_tokens: 100 > 64, which is the maximum", errors.BadRequest),
    (
        400,
        "invalid_request_error",
        "prompt is too long: 210000 tokens > 200000 maximum",
        errors.ContextTooLong,
    ),
    (
        400,
        "invalid_request_error",
        "input length and `max_tokens` exceed context limit: 199759 + 8192 > 200000, decrease input length",
        errors.ContextTooLong,
    ),
    (
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.",
        errors.QuotaExceeded,
    ),
    (
        400,
        "invalid_request_error",
        "You have reached your specified API usage limits. You will regain access on 2026-04-01.",
        errors.QuotaExceeded,
    ),
    (
        400,
        "invalid_request_error",
        '"thinking.type.enabled" is not supported for this model.',
        errors.CapabilityMissing,
    ),
    (
        400,
        "invalid_request_error",
        "This model does not support assistant message prefill.",
        errors.CapabilityMissing,
    ),
    (401, "authentication_error", "invalid x-api-key", errors.BadCredentials),
    (402, "billing_error", "Payment required", errors.QuotaExceeded),
    (403, "permission_error", "Your API key does not have permission", errors.BadCredentials),
    (404, "not_found_error", "model: claude-x", errors.ModelNotFound),
    (413, "request_too_large", "Request exceeds the maximum size", errors.BadRequest),
    (429, "rate_limit_error", "This request would exceed your rate limit", errors.Overloaded),
    (429, "rate_limit_error", "Extra usage is required for long context requests.", errors.QuotaExceeded),
    (500, "api_error", "Internal server error", errors.Unavailable),
    (504, "timeout_error", "Request timed out", errors.Unavailable),
    (529, "overloaded_error", "Overloaded", errors.Overloaded),
]


@pytest.mark.parametrize(("status", "kind", "message", "expected"), FAULTS)
async def test_error_before_output(
    server: ReplayServer, status: int, kind: str, message: str, expected: type[ProviderError]
) -> None:
    _, error = await replayed(server, answer(said(kind, message), status=status))
    assert type(error) is expected
    assert message in error.message


@pytest.mark.parametrize(("status", "kind", "message", "expected"), FAULTS)
async def test_error_inside_of_the_stream(
    server: ReplayServer, status: int, kind: str, message: str, expected: type[ProviderError]
) -> None:
    """There it has its type alone; once text has come, nobody else may be asked unnoticed."""
    fault = event("error", error={"type": kind, "message": message}, request_id="req_1")
    _, error = await replayed(server, *stream([START, fault]))
    assert type(error) is expected
    assert message in error.message
    events, error = await replayed(server, *stream([BEGUN, fault]))
    assert text_of(events) == "It is"
    assert type(error) is (expected if issubclass(expected, errors.Rejected) else StreamBroken)


async def test_when_to_come_back(server: ReplayServer) -> None:
    limited = answer(said("rate_limit_error", "slow down"), status=429, headers={"retry-after": "12"})
    _, error = await replayed(server, limited)
    assert error is not None
    assert error.retry_after_seconds == 12


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"data: <html>\n\n", "not what its API sends"),
        (b'data: {"type":"content_block_delta","delta":{"text":5}}\n\n', "not what its API sends"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "not what its API sends"),
        (b'data: {"type":"content_block_delta","delta":{"text":"cut off', "not what its API sends"),
        (b'data: {"error":"a proxy between"}\n\n', "a proxy between"),
        (b'{"error":{"message":"not an event at all"}}\n', "not an event at all"),
        (b"data: " + b"x" * 1_100_000, "an event of more than"),
    ],
    ids=["html", "type", "nesting", "cut", "error", "bare", "huge"],
)
@pytest.mark.parametrize(
    ("begun", "expected"), [(START, Unavailable), (BEGUN, StreamBroken)], ids=["before", "after"]
)
async def test_what_no_reply_has(
    server: ReplayServer, line: bytes, says: str, begun: bytes, expected: type[ProviderError]
) -> None:
    _, error = await replayed(server, *stream([begun + line]))
    assert type(error) is expected
    assert says in error.message


async def test_html_page(server: ReplayServer) -> None:
    _, error = await replayed(server, answer(b"<html>Bad gateway</html>", status=502))
    assert type(error) is Unavailable
    assert error.message == f"Anthropic at {server.url} answered: HTTP 502"


async def test_the_key_goes_nowhere_else_and_is_shown_nowhere(
    server: ReplayServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with replay_server() as elsewhere:
        moved = answer(b"", status=307, headers={"location": f"{elsewhere.url}{PATH}"})
        _, redirected = await replayed(server, moved)
        assert type(redirected) is Unavailable
        assert elsewhere.received == []
    _, echoed = await replayed(server, answer(said("authentication_error", f"bad key {KEY}!"), status=401))
    _, inside = await replayed(server, *stream([event("error", error={"type": "api_error", "message": KEY})]))
    why = {"explanation": f"{KEY} {'x' * 5000}"}
    _, refused = await replayed(server, *stream([BEGUN + end("refusal", stop_details=why)]))
    _, ended = await replayed(server, *stream([BEGUN + end(KEY)]))
    assert echoed is not None
    assert "bad key [hidden]!" in echoed.message
    for error in (inside, refused, ended):
        assert error is not None
        assert "[hidden]" in error.message
        assert KEY not in error.message
        assert len(error.message) < 500
    provider = provider_at(server.url)
    assert KEY not in caplog.text + repr(provider._settings) + repr(provider)
    assert all(KEY not in request.path for request in server.received)
    await provider.aclose()


async def test_without_a_key_none_is_sent(server: ReplayServer) -> None:
    """A server in the vendor's place may need none."""
    server.answers[PATH] = stream([REPLY])
    provider = Anthropic(AnthropicSettings(server.url))
    assert await collect(provider.stream(chat("claude-x"))) == EVENTS
    await provider.aclose()
    assert "x-api-key" not in server.received[0].headers


async def test_closing_closes_the_connection_at_once(server: ReplayServer) -> None:
    """C7: whoever closes the stream closes the connection within 100 ms."""
    server.answers[PATH] = stream([BEGUN], Break.HOLD)
    target = urlsplit(server.url)
    async with FaultProxy(target.hostname or "", target.port or 0).running() as proxy:
        provider = Anthropic(AnthropicSettings(proxy.url, KEY))
        clock = asyncio.get_running_loop().time
        async with aclosing(provider.stream(chat("claude-x"))) as events:
            async for one in events:
                if isinstance(one, TextDelta):
                    break
            closed = clock()
        assert clock() - closed < 0.1
        await proxy.wait_for(lambda proxy: len(proxy.client_closed_at) == 1, timeout_seconds=1)
        assert proxy.client_closed_at[0] - closed < 0.1
        await provider.aclose()


MODEL = {
    "type": "model",
    "id": "claude-x",
    "display_name": "Claude X",
    "created_at": "2026-01-01T00:00:00Z",
    "max_input_tokens": 200_000,
    "max_tokens": 64,
    "capabilities": {
        "image_input": {"supported": True},
        "pdf_input": {"supported": True},
        "thinking": {"supported": False, "types": {"adaptive": {"supported": False}}},
    },
}
OLD = {
    "type": "model",
    "id": "claude old",
    "display_name": "Claude Old",
    "created_at": "1970-01-01T00:00:00Z",
    "max_input_tokens": None,
    "max_tokens": None,
    "capabilities": None,
}


def page(*models: object, last_id: str | None = None) -> bytes:
    return answer({"data": models, "has_more": last_id is not None, "first_id": "x", "last_id": last_id})


async def test_list(server: ReplayServer) -> None:
    server.answers["/v1/models?limit=1000"] = (page(MODEL, last_id="claude-x&y"),)
    server.answers["/v1/models?limit=1000&after_id=claude-x%26y"] = (page(OLD),)
    server.answers[PATH] = stream([REPLY])
    provider = provider_at(server.url)
    assert await provider.models() == [
        ModelInfo(
            name="claude-x",
            source=server.url,
            display_name="Claude X",
            type=ModelType.VISION,
            capabilities=ModelCapabilities(vision=True, reasoning=False, max_context_tokens=200_000),
            metadata=ModelMetadata(updated_at=datetime(2026, 1, 1, tzinfo=UTC)),
            state=ModelState.READY,
        ),
        ModelInfo(name="claude old", source=server.url, display_name="Claude Old", state=ModelState.READY),
    ]
    await collect(provider.stream(chat("claude-x", options=GenerationOptions(max_tokens=100))))
    await provider.aclose()
    assert server.received[0].headers["x-api-key"] == KEY
    assert json.loads(server.received[-1].body)["max_tokens"] == 64  # its longest; more would be refused


async def test_a_list_without_end_has_one(server: ReplayServer) -> None:
    server.answers["/v1/models?limit=1000"] = (page(MODEL, last_id="a"),)
    server.answers["/v1/models?limit=1000&after_id=a"] = (page(MODEL, last_id="a"),)
    provider = provider_at(server.url)
    assert len(await provider.models()) == len(server.received) == 10
    await provider.aclose()


async def test_check_asks_for_what_costs_nothing(server: ReplayServer) -> None:
    server.answers["/v1/models?limit=1"] = (page(MODEL),)
    provider = provider_at(server.url)
    await provider.check()
    server.answers["/v1/models?limit=1"] = (answer(said("authentication_error", "invalid"), status=401),)
    with pytest.raises(errors.BadCredentials):
        await provider.check()
    await provider.aclose()
    assert server.paths() == ["/v1/models?limit=1"] * 2


async def test_nobody_there(closed_port: str) -> None:
    provider = provider_at(closed_port)
    for attempt in (collect(provider.stream(chat("claude-x"))), provider.models(), provider.check()):
        with pytest.raises(Unavailable, match="cannot be reached"):
            await attempt
    await provider.aclose()
