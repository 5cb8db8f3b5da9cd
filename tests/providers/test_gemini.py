"""Google's Gemini API: replayed byte for byte, and broken in every way that it can."""

import asyncio
import json
import logging
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
    ModelCapabilities,
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
from providers.errors import (
    CapabilityMissing,
    ContentFiltered,
    ProviderError,
    StreamBroken,
    TimedOut,
    Unavailable,
)
from providers.gemini import Gemini, GeminiSettings
from tests.providers.conftest import chat, collect, outcome, text_of
from tests.providers.proxy import FaultProxy
from tests.providers.replay import Break, Piece, ReplayServer, answer, replay_server, stream

KEY = "AIzaSy-secret"
PATH = "/v1beta/models/gemini-x:streamGenerateContent?alt=sse"


def data(chunk: object) -> bytes:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n".encode()


def part(text: str, *, prompt: int = 12, finish: str | None = None, **counts: int) -> bytes:
    candidate: dict[str, object] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": prompt, **counts}
    return data({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-x"})


def end(reason: str, **fields: object) -> bytes:
    return data({"candidates": [{"finishReason": reason, **fields}]})


THOUGHT = data(
    {
        "candidates": [
            {
                "content": {"role": "model", "parts": [{"text": "Adding the numbers", "thought": True}]},
                "index": 0,
            }
        ],
        "usageMetadata": {"promptTokenCount": 12, "totalTokenCount": 20, "thoughtsTokenCount": 8},
        "modelVersion": "gemini-x",
        "responseId": "r-1",
    }
)
LAST = data(
    {
        "candidates": [
            {
                "content": {
                    "role": "model",
                    "parts": [
                        {"text": '391 €😀, "error" and all.', "thoughtSignature": "Ejj..."},
                        {"text": "!"},
                    ],
                },
                "finishReason": "STOP",
                "index": 0,
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 12,
            "candidatesTokenCount": 5,
            "totalTokenCount": 25,
            "thoughtsTokenCount": 8,
            "cachedContentTokenCount": 4,
        },
        "modelVersion": "gemini-x",
        "responseId": "r-1",
    }
)
REPLY = b"".join(
    (
        THOUGHT,
        b": a comment\r\n\r\n",
        part("It is ", candidatesTokenCount=2, thoughtsTokenCount=8),
        data({"usageMetadata": {"promptTokenCount": 12, "candidatesTokenCount": 2, "thoughtsTokenCount": 8}}),
        data({"candidates": [{"content": {"role": "model"}, "index": 0}]}),
        LAST,
    )
)
EVENTS: list[ProviderEvent] = [
    PhaseChanged(Phase.WAITING),
    ReasoningDelta("Adding the numbers"),
    UsageReport(12, 8),
    TextDelta("It is "),
    UsageReport(12, 10),
    TextDelta('391 €😀, "error" and all.'),
    TextDelta("!"),
    UsageReport(12, 13),
    Finished(FinishReason.STOP),
]
PROMPT = data({"usageMetadata": {"promptTokenCount": 12}})
BEGUN = part("It is")


def provider_at(url: str) -> Gemini:
    return Gemini(
        GeminiSettings(
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
        return await outcome(provider.stream(request or chat("gemini-x")))
    finally:
        await provider.aclose()


def split(body: bytes, cuts: set[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(body)]
    return [body[a:b] for a, b in pairwise(edges) if a < b]


async def test_reply(server: ReplayServer) -> None:
    assert await replayed(server, *stream([REPLY])) == (EVENTS, None)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
async def test_reply_byte_by_byte(server: ReplayServer, line_end: bytes) -> None:
    body = REPLY.replace(b"\r\n", line_end)
    assert await replayed(server, *stream(split(body, set(range(len(body)))))) == (EVENTS, None)


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
    options = GenerationOptions(
        temperature=0, top_p=0.9, top_k=40, max_tokens=60, seed=7, stop=("\n\n", "END")
    )
    messages = (
        ChatMessage(Role.SYSTEM, "Be brief."),
        ChatMessage(Role.USER, "Héllo"),
        ChatMessage(Role.ASSISTANT, "Hi"),
        ChatMessage(Role.ASSISTANT, " \n"),
        ChatMessage(Role.USER, "Again"),
        ChatMessage(Role.USER, "and again"),
    )
    provider = provider_at(server.url)
    await collect(provider.stream(ChatRequest("gemini-x", messages, options)))
    await collect(provider.stream(chat("gemini-x", "plain")))
    await provider.aclose()
    first, second = server.received
    assert (first.method, first.path) == ("POST", PATH)
    assert first.headers["x-goog-api-key"] == KEY
    assert first.headers["content-type"] == "application/json"
    assert json.loads(first.body) == {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Héllo"}]},
            {"role": "model", "parts": [{"text": "Hi"}]},
            {"role": "user", "parts": [{"text": "Again"}, {"text": "and again"}]},
        ],
        "generationConfig": {
            "temperature": 0,
            "topP": 0.9,
            "topK": 40,
            "maxOutputTokens": 60,
            "seed": 7,
            "stopSequences": ["\n\n", "END"],
        },
    }
    assert json.loads(second.body) == {
        "contents": [{"role": "user", "parts": [{"text": "plain"}]}],
        "generationConfig": {},
    }
    assert server.connections == 1


async def test_no_request_for_more_stop_strings_than_it_takes(server: ReplayServer) -> None:
    request = chat("gemini-x", options=GenerationOptions(stop=tuple("abcdef")))
    _, error = await replayed(server, *stream([REPLY]), request=request)
    assert type(error) is CapabilityMissing
    assert server.received == []


async def test_a_base_url_that_names_the_version_too(server: ReplayServer) -> None:
    server.answers[f"/proxy{PATH}"] = stream([REPLY])
    provider = provider_at(f"{server.url}/proxy/v1beta/")
    assert await collect(provider.stream(chat("gemini-x"))) == EVENTS
    await provider.aclose()


async def test_a_name_cannot_ask_for_another_path(server: ReplayServer) -> None:
    await replayed(server, *stream([REPLY]), request=chat("../files?x=1&y#"))
    assert server.paths() == ["/v1beta/models/..%2Ffiles%3Fx%3D1%26y%23:streamGenerateContent?alt=sse"]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (end("STOP"), FinishReason.STOP),
        (end("MAX_TOKENS"), FinishReason.LENGTH),
        (part("", finish="STOP") + data({"usageMetadata": {"promptTokenCount": 12}}), FinishReason.STOP),
        (part("", finish="STOP") + part("", finish="STOP"), FinishReason.STOP),
        (end("FINISH_REASON_UNSPECIFIED") + end("STOP"), FinishReason.STOP),
    ],
)
async def test_finish(server: ReplayServer, last: bytes, expected: FinishReason) -> None:
    events, error = await replayed(server, *stream([BEGUN + last]))
    assert error is None
    assert events[-2:] == [UsageReport(12, None), Finished(expected)]


async def test_a_finish_reason_with_every_chunk_ends_nothing(server: ReplayServer) -> None:
    chunks = [part(text, finish="STOP") for text in ("It ", "is ", "391.")]
    events, error = await replayed(server, *stream(chunks))
    assert error is None
    assert text_of(events) == "It is 391."
    assert events.count(Finished(FinishReason.STOP)) == 1
    events, error = await replayed(server, *stream(chunks, Break.CLOSE))
    assert type(error) is StreamBroken  # who can tell what else would have come


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("SAFETY", ContentFiltered),
        ("RECITATION", ContentFiltered),
        ("BLOCKLIST", ContentFiltered),
        ("PROHIBITED_CONTENT", ContentFiltered),
        ("SPII", ContentFiltered),
        ("IMAGE_SAFETY", ContentFiltered),
        ("LANGUAGE", CapabilityMissing),
        ("OTHER", Unavailable),
        ("MALFORMED_FUNCTION_CALL", Unavailable),
    ],
)
async def test_end_that_is_no_success(
    server: ReplayServer, reason: str, expected: type[ProviderError]
) -> None:
    events, error = await replayed(server, *stream([PROMPT, end(reason)]))
    assert type(error) is expected
    assert reason in error.message
    assert events[-1] == UsageReport(12, None)
    events, error = await replayed(server, *stream([BEGUN, end(reason, finishMessage="That is why.")]))
    assert text_of(events) == "It is"
    assert type(error) is (ContentFiltered if expected is ContentFiltered else StreamBroken)
    assert "That is why." in error.message


@pytest.mark.parametrize("reason", ["SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT"])
async def test_blocked_prompt(server: ReplayServer, reason: str) -> None:
    chunk = {
        "promptFeedback": {"blockReason": reason, "safetyRatings": []},
        "usageMetadata": {"promptTokenCount": 9},
    }
    events, error = await replayed(server, *stream([data(chunk)]))
    assert type(error) is ContentFiltered
    assert f"blocked the prompt: {reason}" in error.message
    assert events[-1] == UsageReport(9, None)


@pytest.mark.parametrize("ending", [(), (Break.RESET,), (Break.CLOSE,), (Break.HOLD,)], ids=str)
@pytest.mark.parametrize("begun", [b"", PROMPT, BEGUN], ids=["nothing", "start", "text"])
async def test_no_terminal_marker(server: ReplayServer, begun: bytes, ending: tuple[Piece, ...]) -> None:
    events, error = await replayed(server, *stream([begun] if begun else [], *ending))
    assert isinstance(error, StreamBroken if begun == BEGUN else Unavailable)
    assert text_of(events) == ("It is" if begun == BEGUN else "")


async def test_silence_is_a_failure_in_time(server: ReplayServer) -> None:
    _, error = await replayed(server, Break.HOLD)
    assert type(error) is TimedOut


def said(code: int, status: str, message: str, *details: object) -> dict[str, object]:
    error: dict[str, object] = {"code": code, "message": message, "status": status}
    if details:
        error["details"] = details
    return {"error": error}


def detail(kind: str, **fields: object) -> dict[str, object]:
    return {"@type": f"type.googleapis.com/google.rpc.{kind}", **fields}


def quota(quota_id: str) -> dict[str, object]:
    return detail("QuotaFailure", violations=[{"quotaId": quota_id, "quotaValue": "10"}])


EXHAUSTED = "You exceeded your current quota, please check your plan and billing details."
FAULTS = [
    (said(400, "INVALID_ARGUMENT", "Invalid value at 'contents'"), errors.BadRequest),
    (
        said(
            400,
            "INVALID_ARGUMENT",
            "The input token count (3475108) exceeds the maximum number of tokens allowed (1048576).",
        ),
        errors.ContextTooLong,
    ),
    (
        said(
            400,
            "INVALID_ARGUMENT",
            "API key not valid. Please pass a valid API key.",
            detail("ErrorInfo", reason="API_KEY_INVALID", domain="googleapis.com"),
            detail("LocalizedMessage", locale="en-US"),
        ),
        errors.BadCredentials,
    ),
    (
        said(400, "INVALID_ARGUMENT", "Developer instruction is not enabled for models/gemma-x"),
        errors.CapabilityMissing,
    ),
    (
        said(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
        errors.BadCredentials,
    ),
    (said(403, "PERMISSION_DENIED", "The caller does not have permission"), errors.BadCredentials),
    (said(404, "NOT_FOUND", "models/gemini-x is not found for API version v1beta"), errors.ModelNotFound),
    (said(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."), errors.Overloaded),
    (
        said(
            429,
            "RESOURCE_EXHAUSTED",
            EXHAUSTED,
            quota("GenerateRequestsPerMinutePerProjectPerModel-FreeTier"),
        ),
        errors.Overloaded,
    ),
    (
        said(
            429, "RESOURCE_EXHAUSTED", EXHAUSTED, quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier")
        ),
        errors.QuotaExceeded,
    ),
    (said(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."), errors.QuotaExceeded),
    (said(500, "INTERNAL", "An internal error has occurred."), errors.Unavailable),
    (said(503, "UNAVAILABLE", "The model is overloaded. Please try again later."), errors.Overloaded),
    (said(504, "DEADLINE_EXCEEDED", "Deadline expired."), errors.Unavailable),
]


def message_of(body: dict[str, object]) -> str:
    error = body["error"]
    assert isinstance(error, dict)
    return str(error["message"])


def status_of(body: dict[str, object]) -> int:
    error = body["error"]
    assert isinstance(error, dict)
    return int(error["code"])


@pytest.mark.parametrize(("body", "expected"), FAULTS)
async def test_error_before_output(
    server: ReplayServer, body: dict[str, object], expected: type[ProviderError]
) -> None:
    for sent in (body, [body]):
        _, error = await replayed(server, answer(sent, status=status_of(body)))
        assert type(error) is expected
        assert message_of(body) in error.message


@pytest.mark.parametrize(("body", "expected"), FAULTS)
async def test_error_inside_of_the_stream(
    server: ReplayServer, body: dict[str, object], expected: type[ProviderError]
) -> None:
    """It comes as an event, or in the middle of the body as JSON that no ``data:`` announces."""
    bare = json.dumps(body, indent=2).encode()
    for fault in (data(body), bare, bare.replace(b"\n", b"\r\n"), b"[" + bare + b"]\n"):
        _, error = await replayed(server, *stream([PROMPT, fault]))
        assert type(error) is expected
        assert message_of(body) in error.message
        events, error = await replayed(server, *stream([BEGUN, fault]))
        assert text_of(events) == "It is"
        assert type(error) is (expected if issubclass(expected, errors.Rejected) else StreamBroken)


@pytest.mark.parametrize(
    ("delay", "seconds"), [("12s", 12), ("25.5s", 25.5), ("-1s", 0), ("soon", 7), ("nans", 7), (None, 7)]
)
async def test_when_to_come_back(server: ReplayServer, delay: str | None, seconds: float) -> None:
    details = () if delay is None else (detail("Help"), detail("RetryInfo", retryDelay=delay))
    body = said(429, "RESOURCE_EXHAUSTED", EXHAUSTED, *details)
    _, error = await replayed(server, answer(body, status=429, headers={"retry-after": "7"}))
    assert error is not None
    assert error.retry_after_seconds == seconds


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"data: <html>\n\n", "not what its API sends"),
        (b'data: {"candidates":[{"content":{"parts":[{"text":5}]}}]}\n\n', "not what its API sends"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "not what its API sends"),
        (b'data: {"candidates":[{"content":{"parts":[{"text":"cut off', "not what its API sends"),
        (b'[{"candidates":[{"finishReason":"STOP"}]}]', "not what its API sends"),
        (b'{\n  "error": {\n    "code": 503,\n    "mess', "not what its API sends"),
        (b"data: " + b"x" * 1_100_000, "an event of more than"),
    ],
    ids=["html", "type", "nesting", "cut", "array", "cut error", "huge"],
)
@pytest.mark.parametrize(
    ("begun", "expected"), [(PROMPT, Unavailable), (BEGUN, StreamBroken)], ids=["before", "after"]
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
    assert error.message == f"Gemini at {server.url} answered: HTTP 502"


async def test_the_key_goes_nowhere_else_and_is_shown_nowhere(
    server: ReplayServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with replay_server() as elsewhere:
        moved = answer(b"", status=307, headers={"location": f"{elsewhere.url}{PATH}"})
        _, redirected = await replayed(server, moved)
        assert type(redirected) is Unavailable
        assert elsewhere.received == []
    _, echoed = await replayed(server, answer(said(403, "PERMISSION_DENIED", f"bad key {KEY}!"), status=403))
    _, inside = await replayed(server, *stream([data(said(500, "INTERNAL", KEY))]))
    why = f"{KEY} {'x' * 5000}"
    blocked = {"promptFeedback": {"blockReason": "OTHER", "blockReasonMessage": why}}
    _, blocking = await replayed(server, *stream([data(blocked)]))
    _, withheld = await replayed(server, *stream([end("SAFETY", finishMessage=why)]))
    _, ended = await replayed(server, *stream([end(KEY)]))
    assert echoed is not None
    assert "bad key [hidden]!" in echoed.message
    for error in (inside, blocking, withheld, ended):
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
    provider = Gemini(GeminiSettings(server.url))
    assert await collect(provider.stream(chat("gemini-x"))) == EVENTS
    await provider.aclose()
    assert "x-goog-api-key" not in server.received[0].headers


async def test_closing_closes_the_connection_at_once(server: ReplayServer) -> None:
    """C7: whoever closes the stream closes the connection within 100 ms."""
    server.answers[PATH] = stream([BEGUN], Break.HOLD)
    target = urlsplit(server.url)
    async with FaultProxy(target.hostname or "", target.port or 0).running() as proxy:
        provider = Gemini(GeminiSettings(proxy.url, KEY))
        clock = asyncio.get_running_loop().time
        async with aclosing(provider.stream(chat("gemini-x"))) as events:
            async for one in events:
                if isinstance(one, TextDelta):
                    break
            closed = clock()
        assert clock() - closed < 0.1
        await proxy.wait_for(lambda proxy: len(proxy.client_closed_at) == 1, timeout_seconds=1)
        assert proxy.client_closed_at[0] - closed < 0.1
        await provider.aclose()


MODEL = {
    "name": "models/gemini-x",
    "displayName": "Gemini X",
    "description": "Thinks first.",
    "version": "001",
    "inputTokenLimit": 1_048_576,
    "outputTokenLimit": 64,
    "supportedGenerationMethods": ["generateContent", "countTokens"],
    "thinking": True,
    "temperature": 1,
    "topP": 0.95,
    "topK": 64,
    "maxTemperature": 1.5,
}
EMBEDDER = {"name": "models/embedding-x", "supportedGenerationMethods": ["embedContent"]}
SPEAKER = {"name": "models/gemini-x-tts", "supportedGenerationMethods": ["generateContent"]}
GEMMA = {"name": "models/gemma-x", "supportedGenerationMethods": ["generateContent"]}


async def test_list(server: ReplayServer) -> None:
    first = {"models": [EMBEDDER, MODEL, SPEAKER], "nextPageToken": "more&x"}
    server.answers["/v1beta/models?pageSize=1000"] = (answer(first),)
    server.answers["/v1beta/models?pageSize=1000&pageToken=more%26x"] = (answer({"models": [GEMMA]}),)
    server.answers[PATH] = stream([REPLY])
    provider = provider_at(server.url)
    assert await provider.models() == [
        ModelInfo(
            name="gemini-x",
            source=server.url,
            display_name="Gemini X",
            type=ModelType.VISION,
            description="Thinks first.",
            capabilities=ModelCapabilities(vision=True, reasoning=True, max_context_tokens=1_048_576),
            state=ModelState.READY,
        ),
        ModelInfo(name="gemma-x", source=server.url, display_name="gemma-x", state=ModelState.READY),
    ]
    options = GenerationOptions(max_tokens=100, temperature=2)
    await collect(provider.stream(chat("gemini-x", options=options)))
    await provider.aclose()
    assert server.received[0].headers["x-goog-api-key"] == KEY
    assert json.loads(server.received[-1].body)["generationConfig"] == {
        "maxOutputTokens": 64,  # its longest; more would be refused
        "temperature": 1.5,
        "thinkingConfig": {"includeThoughts": True},
    }


async def test_a_list_without_end_has_one(server: ReplayServer) -> None:
    again = (answer({"models": [MODEL], "nextPageToken": "a"}),)
    server.answers["/v1beta/models?pageSize=1000"] = again
    server.answers["/v1beta/models?pageSize=1000&pageToken=a"] = again
    provider = provider_at(server.url)
    assert len(await provider.models()) == 1
    assert len(server.received) == 10
    await provider.aclose()


async def test_empty_list(server: ReplayServer) -> None:
    server.answers["/v1beta/models?pageSize=1000"] = (answer({}),)
    provider = provider_at(server.url)
    assert await provider.models() == []
    await provider.aclose()


async def test_check_asks_for_what_costs_nothing(server: ReplayServer) -> None:
    path = "/v1beta/models?pageSize=1"
    server.answers[path] = (answer({"models": [MODEL]}),)
    provider = provider_at(server.url)
    await provider.check()
    server.answers[path] = (answer(said(403, "PERMISSION_DENIED", "no"), status=403),)
    with pytest.raises(errors.BadCredentials):
        await provider.check()
    await provider.aclose()
    assert server.paths() == [path] * 2


async def test_nobody_there(closed_port: str) -> None:
    provider = provider_at(closed_port)
    for attempt in (collect(provider.stream(chat("gemini-x"))), provider.models(), provider.check()):
        with pytest.raises(Unavailable, match="cannot be reached"):
            await attempt
    await provider.aclose()
