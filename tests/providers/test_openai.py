"""OpenAI's chat completions: replayed byte for byte, and broken in every way."""

import asyncio
import json
import logging
import time
from contextlib import aclosing
from itertools import pairwise
from typing import Any
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
    Phase,
    PhaseChanged,
    ProviderEvent,
    ReasoningDelta,
    Role,
    TextDelta,
    UsageReport,
)
from providers.errors import ProviderError, StreamBroken, Unavailable
from providers.openai import OPENAI, Dialect, OpenAI, OpenAISettings
from tests.providers.conftest import chat, collect, outcome, text_of
from tests.providers.proxy import FaultProxy
from tests.providers.replay import Break, Piece, Received, ReplayServer, answer, replay_server, stream

CHAT = "/v1/chat/completions"
KEY = "sk-proj-0123456789abcdef"
COMPATIBLE = Dialect("Test")


def sse(*chunks: object) -> bytes:
    lines = (chunk if isinstance(chunk, str) else json.dumps(chunk, ensure_ascii=False) for chunk in chunks)
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def delta(finish: str | None = None, **fields: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}], "usage": None}


USAGE = {"choices": [], "usage": {"prompt_tokens": 31, "completion_tokens": 18, "total_tokens": 49}}
BEGUN = sse(delta(content="It is"))
REPLY = b": keep-alive\n\n" + sse(
    delta(role="assistant", content=""),
    delta(reasoning_content="The user"),
    delta(content="It is"),
    delta(content=" 391 €😀\u2028."),
    delta(content='"error" it is not'),
    delta("stop"),
    USAGE,
    "[DONE]",
)
EVENTS: list[ProviderEvent] = [
    PhaseChanged(Phase.WAITING),
    ReasoningDelta("The user"),
    TextDelta("It is"),
    TextDelta(" 391 €😀\u2028."),
    TextDelta('"error" it is not'),
    UsageReport(31, 18),
    Finished(FinishReason.STOP),
]


def provider_at(
    url: str, dialect: Dialect = COMPATIBLE, api_key: str = KEY, *, patience_seconds: float = 10.0
) -> OpenAI:
    """Short of patience where a test waits for its end."""
    return OpenAI(
        OpenAISettings(
            "test",
            f"{url}/v1",
            dialect,
            api_key,
            connect_timeout_seconds=patience_seconds,
            first_token_timeout_seconds=patience_seconds,
            stream_timeout_seconds=patience_seconds,
            list_timeout_seconds=patience_seconds,
        )
    )


async def replayed(server: ReplayServer, *pieces: Piece) -> list[ProviderEvent]:
    server.answers[CHAT] = pieces
    provider = provider_at(server.url, patience_seconds=0.3 if Break.HOLD in pieces else 10.0)
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


async def test_reply_with_other_line_ends(server: ReplayServer) -> None:
    assert await replayed(server, *stream([REPLY.replace(b"\n", b"\r\n")])) == EVENTS


async def test_reply_byte_by_byte(server: ReplayServer) -> None:
    assert await replayed(server, *stream(split(REPLY, set(range(len(REPLY)))))) == EVENTS


@settings(max_examples=40)
@given(st.sets(st.integers(1, len(REPLY) - 1)))
async def test_reply_is_the_same_however_it_is_cut(cuts: set[int]) -> None:
    async with replay_server() as server:
        assert await replayed(server, *stream(split(REPLY, cuts))) == EVENTS


@settings(max_examples=60)
@given(st.binary(max_size=200), st.integers(0, len(REPLY)))
async def test_fuzzed_bytes_end_the_reply_or_change_nothing_but_it(junk: bytes, where: int) -> None:
    """Junk in the bytes is an error or leaves a whole reply; it never crashes, hangs or half succeeds."""
    async with replay_server() as server:
        server.answers[CHAT] = stream([REPLY[:where] + junk + REPLY[where:]])
        provider = provider_at(server.url)
        events, error = await outcome(provider.stream(chat("m")))
        await provider.aclose()
    assert isinstance(events[-1], Finished) != isinstance(error, Unavailable | StreamBroken)


OPTIONS = GenerationOptions(temperature=0, top_p=0.9, top_k=40, max_tokens=60, seed=7, stop=("\n\n", "END"))


async def test_request(server: ReplayServer) -> None:
    server.answers[CHAT] = stream([REPLY])
    messages = (
        ChatMessage(Role.SYSTEM, "Be brief."),
        ChatMessage(Role.USER, "Héllo"),
        ChatMessage(Role.ASSISTANT, "Hi"),
        ChatMessage(Role.USER, "Again"),
    )
    provider = provider_at(server.url)
    await collect(provider.stream(ChatRequest("m", messages, OPTIONS)))
    await collect(provider.stream(chat("m", "plain")))
    await provider.aclose()
    first, second = (json.loads(request.body) for request in server.received)
    assert first == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Héllo"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "Again"},
        ],
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "max_tokens": 60,
        "seed": 7,
        "stop": ["\n\n", "END"],
    }
    assert second.keys() == {"model", "messages", "stream", "stream_options"}
    assert server.received[0].headers["authorization"] == f"Bearer {KEY}"
    assert server.connections == 1


async def test_request_to_openai_itself(server: ReplayServer) -> None:
    server.answers[CHAT] = stream([REPLY])
    provider = provider_at(server.url, OPENAI)
    await collect(provider.stream(chat("m", options=OPTIONS)))
    await provider.aclose()
    sent = json.loads(server.received[0].body)
    assert sent["max_completion_tokens"] == 60
    assert sent.keys().isdisjoint({"max_tokens", "top_k"})


async def test_no_key_is_sent_where_there_is_none(server: ReplayServer) -> None:
    server.answers[CHAT] = stream([REPLY])
    provider = provider_at(server.url, api_key="")
    await collect(provider.stream(chat("m")))
    await provider.aclose()
    assert "authorization" not in server.received[0].headers


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (sse(delta("length"), USAGE, "[DONE]"), [UsageReport(31, 18), Finished(FinishReason.LENGTH)]),
        (sse(delta("tool_calls"), "[DONE]"), [Finished(FinishReason.STOP)]),
        (sse(delta("eos_token")), [Finished(FinishReason.STOP)]),
        (sse("[DONE]"), [Finished(FinishReason.STOP)]),
        (b"data: [DONE]", [Finished(FinishReason.STOP)]),
        # transformers serve: usage beside the end, and nothing after it.
        (sse(delta("stop") | {"usage": USAGE["usage"]}), [UsageReport(31, 18), Finished(FinishReason.STOP)]),
        # Text, end and usage all in one.
        (
            sse(delta("stop", content=" so.") | {"usage": {"prompt_tokens": 2}}),
            [TextDelta(" so."), UsageReport(2, None), Finished(FinishReason.STOP)],
        ),
        # A usage with every chunk: the last one counts.
        (
            sse(delta(content="!") | {"usage": {"completion_tokens": 1}}, delta("stop"), USAGE, "[DONE]"),
            [TextDelta("!"), UsageReport(31, 18), Finished(FinishReason.STOP)],
        ),
        (sse(delta("", content="!"), delta("stop")), [TextDelta("!"), Finished(FinishReason.STOP)]),
        (sse({"choices": None, "error": None}, delta("stop")), [Finished(FinishReason.STOP)]),
        (sse(delta(refusal="No."), delta("stop")), [TextDelta("No."), Finished(FinishReason.STOP)]),
        (sse(delta("stop", content=None, role="assistant", tool_calls=[])), [Finished(FinishReason.STOP)]),
    ],
)
async def test_ends(server: ReplayServer, rest: bytes, expected: list[ProviderEvent]) -> None:
    events = await replayed(server, *stream([BEGUN + rest]))
    assert events == [PhaseChanged(Phase.WAITING), TextDelta("It is"), *expected]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning_content": "Hm"}, [ReasoningDelta("Hm")]),
        ({"reasoning": "Hm"}, [ReasoningDelta("Hm")]),
        ({"reasoning": "Hm", "reasoning_content": "Hm"}, [ReasoningDelta("Hm")]),
        ({"reasoning": "Hm", "content": "Yes"}, [ReasoningDelta("Hm"), TextDelta("Yes")]),
        ({"reasoning": None, "reasoning_content": "", "content": ""}, []),
    ],
)
async def test_reasoning(server: ReplayServer, fields: dict[str, Any], expected: list[ProviderEvent]) -> None:
    events = await replayed(server, *stream([sse(delta(**fields), delta("stop"))]))
    assert events[1:-1] == expected


async def test_answer_in_one_piece(server: ReplayServer) -> None:
    """A server that does not stream although it was asked to."""
    message = {"role": "assistant", "content": "It is 391.", "reasoning": "Hm"}
    body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": USAGE["usage"]}
    assert await replayed(server, answer(body)) == [
        PhaseChanged(Phase.WAITING),
        ReasoningDelta("Hm"),
        TextDelta("It is 391."),
        UsageReport(31, 18),
        Finished(FinishReason.STOP),
    ]


@pytest.mark.parametrize("after", [b"", sse(USAGE)], ids=["end", "usage"])
@pytest.mark.parametrize("ending", [(Break.HOLD,), (Break.RESET,), (Break.CLOSE,)], ids=str)
async def test_a_complete_reply_counts_whatever_becomes_of_the_connection(
    server: ReplayServer, after: bytes, ending: tuple[Piece, ...]
) -> None:
    events = await replayed(server, *stream([BEGUN + sse(delta("stop")) + after], *ending))
    assert events[2:] == [*([UsageReport(31, 18)] if after else []), Finished(FinishReason.STOP)]


def said(message: str, code: object = None, kind: str = "invalid_request_error") -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


HF_UNKNOWN = "The requested model 'a/b' is not supported by any provider you have enabled."
VLLM_LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, said("Incorrect API key provided", "invalid_api_key"), errors.BadCredentials),
        (403, said("Country not supported", "unsupported_country"), errors.BadCredentials),
        (404, said("The model `m` does not exist", "model_not_found"), errors.ModelNotFound),
        (400, said("too long", "context_length_exceeded"), errors.ContextTooLong),
        (400, said("request (9 tokens) exceeds", 400, "exceed_context_size_error"), errors.ContextTooLong),
        (400, {"object": "error", "message": VLLM_LONG, "code": 400}, errors.ContextTooLong),
        (429, said("You exceeded your current quota", "insufficient_quota"), errors.QuotaExceeded),
        (429, said("Rate limit reached", "rate_limit_exceeded", "tokens"), errors.Overloaded),
        (429, {"error": "too many"}, errors.Overloaded),
        (402, {"error": "You have exceeded your monthly included credits"}, errors.QuotaExceeded),
        (400, said("filtered", "content_filter"), errors.ContentFiltered),
        (400, said("no", "content_policy_violation"), errors.ContentFiltered),
        (400, said("flagged", "invalid_prompt"), errors.ContentFiltered),
        (
            400,
            {"error": {"message": "filtered", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
            errors.ContentFiltered,
        ),
        (400, said("temperature: 3 is above the maximum of 2"), errors.BadRequest),
        (422, {"detail": [{"loc": ["body", "messages"], "msg": "bad"}]}, errors.BadRequest),
        (400, {"error": HF_UNKNOWN}, errors.ModelNotFound),
        (
            404,
            {"object": "error", "message": "The model `m` does not exist.", "code": 404},
            errors.ModelNotFound,
        ),
        (404, {"detail": "Not Found"}, Unavailable),
        (500, said("The server had an error", kind="server_error"), Unavailable),
        (503, said("Loading model", 503, "unavailable_error"), errors.Overloaded),
    ],
)
async def test_error_before_output(
    server: ReplayServer, status: int, body: object, expected: type[ProviderError]
) -> None:
    server.answers["/v1/models"] = (answer({"data": []}),)
    error = await failure(server, answer(body, status=status, headers={"retry-after": "3"}))
    assert isinstance(error, expected)
    assert type(error).next_candidate is expected.next_candidate
    assert error.retry_after_seconds == 3
    assert len(server.received) == 1


IN_THE_STREAM: list[tuple[str, type[ProviderError], str]] = [
    (
        json.dumps(said("The server had an error", kind="server_error")),
        Unavailable,
        "The server had an error",
    ),
    (json.dumps(said("quota", "insufficient_quota")), errors.QuotaExceeded, "quota"),
    (
        json.dumps({"error": "Model is overloaded", "error_type": "overloaded"}),
        errors.Overloaded,
        "overloaded",
    ),
    (json.dumps({"error": "Input validation error", "error_type": "validation"}), Unavailable, "validation"),
    (
        json.dumps({"object": "error", "message": VLLM_LONG, "type": "BadRequestError", "code": 400}),
        errors.ContextTooLong,
        "4096",
    ),
    (json.dumps(said("rate limited upstream", 429)), errors.Overloaded, "rate limited upstream"),
    (json.dumps(said("no such thing", "404")), Unavailable, "no such thing"),
    ('{"error": "CUDA error: "device-side" assert"}', Unavailable, 'CUDA error: "device-side" assert'),
    ('{"error": "first line\nsecond line"}', Unavailable, "first line"),
]


@pytest.mark.parametrize(("data", "expected", "says"), IN_THE_STREAM)
async def test_error_in_the_stream(
    server: ReplayServer, data: str, expected: type[ProviderError], says: str
) -> None:
    error = await failure(server, *stream([b"data: %s\n\n" % data.encode()]))
    assert isinstance(error, expected)
    assert says in error.message
    error = await failure(server, *stream([BEGUN + b"data: %s\n\n" % data.encode() + sse("[DONE]")]))
    assert type(error) is StreamBroken
    assert says in error.message


async def test_error_that_is_no_event(server: ReplayServer) -> None:
    """A plain JSON error after a begun stream, and as the whole of a successful answer."""
    tail = json.dumps(said("overloaded now", "overloaded"), indent=2).encode()
    error = await failure(server, *stream([BEGUN + tail]))
    assert type(error) is StreamBroken
    assert "overloaded now" in error.message
    assert type(await failure(server, answer(said("overloaded now", "overloaded")))) is errors.Overloaded


async def test_content_filter_is_a_refusal_also_in_mid_reply(server: ReplayServer) -> None:
    server.answers[CHAT] = stream([BEGUN + sse(delta("content_filter"), USAGE, "[DONE]")])
    provider = provider_at(server.url)
    seen, error = await outcome(provider.stream(chat("m")))
    assert text_of(seen) == "It is"
    assert seen[-1] == UsageReport(31, 18)
    assert type(error) is errors.ContentFiltered
    await provider.aclose()


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
async def test_an_end_that_is_no_success(server: ReplayServer, reason: str) -> None:
    error = await failure(server, *stream([BEGUN + sse(delta(reason), USAGE, "[DONE]")]))
    assert type(error) is StreamBroken
    assert reason in error.message


@pytest.mark.parametrize("ending", [(), (Break.RESET,), (Break.CLOSE,), (Break.HOLD,)], ids=str)
@pytest.mark.parametrize(
    ("begun", "expected"), [(b"", Unavailable), (BEGUN, StreamBroken)], ids=["before", "after"]
)
async def test_no_terminal_marker(
    server: ReplayServer, begun: bytes, ending: tuple[Piece, ...], expected: type[ProviderError]
) -> None:
    error = await failure(server, *stream([begun] if begun else [], *ending))
    assert isinstance(error, expected)


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        (b"data: <html>\n\n", "not what its API sends"),
        (sse({"choices": [{"delta": {"content": 5}}]}), "not what its API sends"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "not what its API sends"),
        (sse(delta(content="whole"))[:-20], "not what its API sends"),
        (b"data: " + b"x" * 1_100_000, "an event of more than"),
        (b"<html>Bad gateway</html>", "without completing it"),
    ],
    ids=["html", "type", "nesting", "cut", "huge", "page"],
)
@pytest.mark.parametrize(
    ("begun", "expected"), [(b"", Unavailable), (BEGUN, StreamBroken)], ids=["before", "after"]
)
async def test_what_no_reply_has(
    server: ReplayServer, rest: bytes, says: str, begun: bytes, expected: type[ProviderError]
) -> None:
    error = await failure(server, *stream([begun + rest]))
    assert type(error) is expected
    assert says in error.message


async def test_done_alone_is_no_reply(server: ReplayServer) -> None:
    assert "without completing it" in (await failure(server, *stream([sse("[DONE]")]))).message


async def test_keep_alives_are_no_tokens(server: ReplayServer) -> None:
    """A queue may send comments for ever: the first token has its time limit all the same."""
    server.answers[CHAT] = stream([b": waiting\n\n"] * 50, Break.HOLD)
    provider = provider_at(server.url, patience_seconds=0.3)
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"no token within 0\.3 s"):
        await collect(provider.stream(chat("m")))
    assert time.monotonic() - began < 1
    await provider.aclose()


UNKNOWN_FIELD = {
    "temperature": said(
        "Unsupported value: 'temperature' does not support 0 with this model.", "unsupported_value"
    ),
    "max_completion_tokens": said("Unrecognized request argument supplied: max_completion_tokens"),
    "stream_options": {"detail": "Unexpected fields in the request: {'stream_options', 'top_k'}"},
    "top_k": {"error": {"message": "property 'top_k' is unsupported"}},
}


@pytest.mark.parametrize("field", UNKNOWN_FIELD)
async def test_a_field_that_the_server_does_not_take_is_left_out_from_then_on(
    field: str, server: ReplayServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "parley.providers")
    provider = provider_at(server.url, Dialect("Test", limit_field="max_completion_tokens"))
    refusing = answer(UNKNOWN_FIELD[field], status=400)

    def react(request: Received) -> tuple[Piece, ...]:
        return (refusing,) if field in json.loads(request.body) else stream([REPLY])

    server.answers[CHAT] = react
    for _ in range(2):
        assert await collect(provider.stream(chat("m", options=OPTIONS))) == EVENTS
    await provider.aclose()
    first, second, third = (json.loads(request.body) for request in server.received)
    assert field in first
    assert second == third
    assert (second.get("max_tokens") == 60) == (field == "max_completion_tokens")
    assert f"does not take {field}" in caplog.text or field == "stream_options"
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "complaint",
    [
        said("temperature must be at most 2"),
        said("Unsupported parameter: 'stop' is not supported with this model"),
        said("Unsupported: max_tokens and max_completion_tokens"),
    ],
)
async def test_what_changes_a_reply_is_never_left_out(server: ReplayServer, complaint: object) -> None:
    server.answers[CHAT] = (answer(complaint, status=400),)
    provider = provider_at(server.url)
    with pytest.raises(errors.BadRequest):
        await collect(provider.stream(chat("m", options=OPTIONS)))
    await provider.aclose()
    assert len(server.received) <= 2


async def test_nothing_is_asked_again_once_a_reply_began(server: ReplayServer) -> None:
    server.answers[CHAT] = stream([BEGUN + sse(said("temperature is not supported", 400))])
    provider = provider_at(server.url)
    seen, error = await outcome(provider.stream(chat("m", options=OPTIONS)))
    assert text_of(seen) == "It is"
    assert type(error) is errors.BadRequest
    assert len(server.received) == 1
    await provider.aclose()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_gets_no_key(server: ReplayServer, status: int) -> None:
    async with replay_server() as thief:
        for path in (CHAT, "/v1/models"):
            location = {"location": f"{thief.url}{path}"}
            server.answers[path] = (answer(b"", status=status, headers=location),)
            thief.answers[path] = stream([REPLY])
        provider = provider_at(server.url)
        for attempt in (collect(provider.stream(chat("m"))), provider.models(), provider.check()):
            with pytest.raises(Unavailable):
                await attempt
        await provider.aclose()
        assert thief.connections == 0


@pytest.mark.parametrize("padding", [0, 370, 380, 390, 395])
async def test_a_key_that_the_server_repeats_is_not_shown(
    server: ReplayServer, padding: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor half of it, where the text is too long to be shown whole."""
    caplog.set_level(logging.DEBUG)
    text = f"Incorrect API key: {'x' * padding} {KEY} (Bearer {KEY})"
    bodies = (
        (answer(said(text), status=401),),
        (answer({"detail": [{"msg": text}]}, status=422),),
        stream([sse(said(text))]),
        stream([BEGUN + sse(said(text))]),
        stream([b'data: {"error": "a "' + text.encode() + b'""}\n\n']),
        stream([sse(delta(text))]),
    )
    for pieces in bodies:
        error = await failure(server, *pieces)
        assert KEY[:12] not in f"{error.message} {error!r} {error.__cause__!r}"
    assert KEY[:12] not in caplog.text


def test_a_key_is_in_no_repr() -> None:
    provider = provider_at("http://127.0.0.1:1")
    shown = f"{provider!r} {vars(provider)!r} {provider._upstream!r} {provider._upstream._client!r}"
    assert KEY[:12] not in shown


def test_a_key_that_cannot_be_sent_is_not_shown() -> None:
    with pytest.raises(ValueError, match="the header authorization") as caught:
        provider_at("http://127.0.0.1:1", api_key="hush\nhush")
    assert "hush" not in str(caught.value)


async def test_refused(closed_port: str) -> None:
    provider = provider_at(closed_port)
    for attempt in (collect(provider.stream(chat("m"))), provider.models(), provider.check()):
        with pytest.raises(Unavailable, match="cannot be reached"):
            await attempt
    await provider.aclose()


async def test_black_hole(black_hole: str) -> None:
    provider = provider_at(black_hole, patience_seconds=0.3)
    for attempt in (collect(provider.stream(chat("m"))), provider.models(), provider.check()):
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await attempt
        assert time.monotonic() - began < 1
    await provider.aclose()


@pytest.mark.parametrize("begun", [[BEGUN], []], ids=["in mid-reply", "before it"])
async def test_closing_a_reply_closes_its_connection_at_once(
    server: ReplayServer, begun: list[bytes]
) -> None:
    """C7."""
    target = urlsplit(server.url)
    server.answers[CHAT] = stream(begun, Break.HOLD)
    async with FaultProxy(target.hostname or "", target.port or 0).running() as proxy:
        provider = provider_at(proxy.url)
        reading = asyncio.create_task(collect(provider.stream(chat("m"))))
        await proxy.wait_for(lambda proxy: proxy.bytes_to_client > 0, timeout_seconds=5)
        cancelled = asyncio.get_running_loop().time()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await proxy.wait_for(lambda proxy: len(proxy.client_closed_at) == 1, timeout_seconds=5)
        assert proxy.client_closed_at[0] - cancelled < 0.5
        await provider.aclose()


async def test_closing_provider_ends_a_reply(server: ReplayServer) -> None:
    server.answers[CHAT] = stream([BEGUN], Break.HOLD)
    provider = provider_at(server.url)
    events = provider.stream(chat("m"))
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                break
        waiting = asyncio.create_task(anext(events, None))
        await asyncio.sleep(0)
        await provider.aclose()
        with pytest.raises(StreamBroken):
            await waiting
