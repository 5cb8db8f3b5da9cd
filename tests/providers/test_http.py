"""The HTTP boundary: every status, every httpx exception, every way to cut bytes."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.errors import (
    BadCredentials,
    BadRequest,
    ModelNotFound,
    Overloaded,
    ProviderError,
    QuotaExceeded,
    Unavailable,
)
from providers.http import HttpFailure, Upstream, error_class, error_text, read_lines, retry_after_seconds
from tests.providers.replay import Break, ReplayServer, answer, stream

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@asynccontextmanager
async def upstream(url: str, *, connect_timeout_seconds: float = 0.2) -> AsyncIterator[Upstream]:
    server = Upstream(url, name="Test", connect_timeout_seconds=connect_timeout_seconds)
    try:
        yield server
    finally:
        await server.aclose()


async def whole(chunks: AsyncGenerator[bytes, None]) -> bytes:
    async with aclosing(chunks):
        return b"".join([chunk async for chunk in chunks])


def httpx_exceptions() -> list[type[Exception]]:
    exported = [getattr(httpx, name) for name in httpx.__all__]
    return [one for one in exported if isinstance(one, type) and issubclass(one, Exception)]


@pytest.mark.parametrize("kind", httpx_exceptions(), ids=lambda kind: kind.__name__)
async def test_no_httpx_exception_is_unmapped(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    error = kind.__new__(kind)
    Exception.__init__(error, "https://user:secret@example.org/path?key=secret")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(httpx.AsyncClient, "stream", fail)
    async with upstream("http://user:secret@127.0.0.1:1/v1") as server:
        with pytest.raises(Unavailable) as caught:
            await whole(server.stream("GET", "/x"))
    assert caught.value.message.startswith("Test at http://127.0.0.1:1 ")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (300, Unavailable),
        (400, BadRequest),
        (401, BadCredentials),
        (402, QuotaExceeded),
        (403, BadCredentials),
        (404, ModelNotFound),
        (408, Unavailable),
        (409, Overloaded),
        (413, BadRequest),
        (422, BadRequest),
        (429, Overloaded),
        (500, Unavailable),
        (502, Unavailable),
        (503, Overloaded),
        (504, Unavailable),
        (529, Overloaded),
    ],
)
async def test_status_is_mapped(server: ReplayServer, status: int, expected: type[ProviderError]) -> None:
    failing = answer({"error": "told why"}, status=status, headers={"Retry-After": "7"})
    server.answers["/x"] = (failing,)
    async with upstream(server.url) as source:
        with pytest.raises(ProviderError) as caught:
            await whole(source.stream("GET", "/x"))
    assert type(caught.value) is expected
    assert caught.value.message == f"Test at {server.url} answered: told why (HTTP {status})"
    assert caught.value.retry_after_seconds == 7


@given(st.integers(300, 999), st.none() | st.text(min_size=1))
def test_every_status_has_a_class(status: int, text: str | None) -> None:
    assert issubclass(error_class(HttpFailure(status, text)), ProviderError)


async def test_headers_go_with_every_request_and_are_in_no_message(server: ReplayServer) -> None:
    """Also where the server repeats them, and where the text has to be cut just there."""
    headers = {"x-api-key": "key-0123456789", "authorization": "Bearer token-0123456789"}
    text = "no key-0123456789 nor token-0123456789, " + "x" * 345
    source = Upstream(server.url, name="Test", connect_timeout_seconds=0.2, headers=headers)
    for end in range(20):
        server.answers["/x"] = (answer({"error": f"{text}{'x' * end} key-0123456789"}, status=400),)
        with pytest.raises(BadRequest) as caught:
            await whole(source.stream("GET", "/x"))
        assert caught.value.message.startswith(f"Test at {server.url} answered: no [hidden] nor [hidden], xx")
        assert "0123" not in caught.value.message
    await source.aclose()
    assert all(headers.items() <= request.headers.items() for request in server.received)
    assert server.received[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("value", ["hush\nhush", "hüsh", "hush\x00"])
def test_a_header_that_cannot_be_sent_is_not_shown(value: str) -> None:
    with pytest.raises(ValueError, match="the header x-api-key") as caught:
        Upstream("http://x", name="Test", connect_timeout_seconds=1, headers={"x-api-key": value})
    assert value not in str(caught.value)


async def test_long_texts_are_cut(server: ReplayServer) -> None:
    server.answers["/x"] = (answer({"error": "x" * 500}, status=400),)
    async with upstream(server.url) as source:
        with pytest.raises(BadRequest, match=f"answered: {'x' * 399}… "):
            await whole(source.stream("GET", "/x"))


async def test_a_redirect_is_not_followed(server: ReplayServer) -> None:
    server.answers["/x"] = (answer(b"", status=307, headers={"location": f"{server.url}/y"}),)
    async with upstream(server.url) as source:
        with pytest.raises(Unavailable, match="HTTP 307"):
            await whole(source.stream("GET", "/x"))
    assert server.paths() == ["/x"]


async def test_page_instead_of_an_error_object(server: ReplayServer) -> None:
    """A web server's own 404 means a wrong address, not an unknown model; its page is not shown."""
    server.answers["/x"] = (answer(b"<html><h1>Not Found</h1></html>", status=404),)
    async with upstream(server.url) as source:
        with pytest.raises(Unavailable, match=r"answered: HTTP 404$"):
            await whole(source.stream("GET", "/x"))


async def test_error_body_that_is_cut_keeps_its_status(server: ReplayServer) -> None:
    head = b"HTTP/1.1 429 Slow\r\ncontent-length: 1000\r\nretry-after-ms: 1500\r\n\r\n{"
    server.answers["/x"] = (head, Break.RESET)
    async with upstream(server.url) as source:
        with pytest.raises(Overloaded) as caught:
            await whole(source.stream("GET", "/x"))
    assert caught.value.retry_after_seconds == 1.5


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": "text"}, "text"),
        ({"error": {"message": "deep", "type": "x"}}, "deep"),
        ({"error": {"code": 5}}, '{"code":5}'),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, "busy"),
        ({"object": "error", "message": "vllm"}, "vllm"),
        ({"detail": "fastapi"}, "fastapi"),
        ({"error": "two\n  lines"}, "two lines"),
        ({"detail": [{"loc": ["top_k"], "msg": "unknown"}]}, '[{"loc":["top_k"],"msg":"unknown"}]'),
        ([{"error": {"message": "deep in a list"}}], "deep in a list"),
        ({"detail": []}, None),
        ({"error": ""}, None),
        ({"error": None}, None),
        ({}, None),
        ([], None),
        ("text", None),
        (None, None),
    ],
)
def test_error_text(body: object, expected: str | None) -> None:
    assert error_text(body) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Sat, 21 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30"}, 30.0),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": f"Sat, 21 Nov {10**20} 12:00:30 GMT"}, None),
        ({"retry-after": f"Sat, 21 Nov 2026 12:00:30 +{10**20}"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_seconds(headers, NOON) == expected


@given(st.text(), st.text())
def test_retry_after_never_fails(milliseconds: str, seconds: str) -> None:
    found = retry_after_seconds({"retry-after-ms": milliseconds, "retry-after": seconds}, NOON)
    assert found is None or found >= 0


async def cut_up(data: bytes, cuts: set[int]) -> AsyncGenerator[bytes, None]:
    edges = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    for start, end in pairwise(edges):
        yield data[start:end]


LINES = '{"a":"é€😀"}\n\n{"b":"x\u2028\\n\x85y\r"}\r\n   \n{"c":1}'.encode()
WHOLE = ['{"a":"é€😀"}'.encode(), '{"b":"x\u2028\\n\x85y\r"}\r'.encode(), b'{"c":1}']


@given(st.sets(st.integers(0, len(LINES))))
async def test_lines_are_the_same_however_they_are_cut(cuts: set[int]) -> None:
    async with aclosing(read_lines(cut_up(LINES, cuts), "Test")) as lines:
        assert [line async for line in lines] == WHOLE


async def test_lines_byte_by_byte() -> None:
    async with aclosing(read_lines(cut_up(LINES, set(range(len(LINES)))), "Test")) as lines:
        assert [line async for line in lines] == WHOLE


async def test_line_without_end_is_not_kept() -> None:
    taken = 0

    async def junk() -> AsyncGenerator[bytes, None]:
        nonlocal taken
        for _ in range(100):
            taken += 100
            yield b"x" * 100

    with pytest.raises(Unavailable, match="a line of more than 1000 bytes"):
        await whole(read_lines(junk(), "Test", max_line_bytes=1000))
    assert taken == 1100


async def test_refused(closed_port: str) -> None:
    async with upstream(closed_port) as source:
        with pytest.raises(Unavailable, match=f"Test at {closed_port} cannot be reached"):
            await whole(source.stream("GET", "/x"))


async def test_black_hole(black_hole: str) -> None:
    async with upstream(black_hole) as source:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="cannot be reached"):
            await whole(source.stream("GET", "/x"))
        assert 0.15 < time.monotonic() - began < 1


async def test_fetch_is_limited_as_a_whole(server: ReplayServer) -> None:
    server.answers["/x"] = stream([b"{"], Break.HOLD)
    async with upstream(server.url) as source:
        with pytest.raises(Unavailable, match=r"did not answer within 0\.1 s"):
            await source.fetch("GET", "/x", timeout_seconds=0.1)


@pytest.mark.parametrize("how", [Break.RESET, Break.CLOSE])
async def test_break_in_mid_body(server: ReplayServer, how: Break) -> None:
    server.answers["/x"] = stream([b"one"], how)
    async with upstream(server.url) as source:
        chunks = source.stream("GET", "/x")
        async with aclosing(chunks):
            assert await anext(chunks) == b"one"
            with pytest.raises(Unavailable, match="broke the connection"):
                await anext(chunks)


@given(st.binary(max_size=300))
async def test_no_answer_crashes_or_hangs(data: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener, upstream(f"http://127.0.0.1:{port}") as source:
        with pytest.raises(Unavailable):
            await source.fetch("GET", "/x", timeout_seconds=2)


async def test_proxy_from_the_environment_gets_nothing(
    server: ReplayServer, closed_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", closed_port)
    monkeypatch.setenv("ALL_PROXY", closed_port)
    server.answers["/x"] = (answer({}),)
    async with upstream(server.url) as source:
        assert await source.fetch("GET", "/x", timeout_seconds=2) == b"{}"


async def test_hundred_streams_and_a_list_beside_them(server: ReplayServer) -> None:
    server.answers["/stream"] = stream([b"one"], Break.HOLD)
    server.answers["/list"] = (answer({}),)
    async with upstream(server.url, connect_timeout_seconds=5) as source:
        streams = [source.stream("GET", "/stream") for _ in range(100)]
        assert await asyncio.gather(*map(anext, streams)) == [b"one"] * 100
        assert await source.fetch("GET", "/list", timeout_seconds=2) == b"{}"
        await asyncio.gather(*(one.aclose() for one in streams))


async def test_connections_are_used_again(server: ReplayServer) -> None:
    server.answers["/stream"] = stream([b"one", b"two"])
    async with upstream(server.url) as source:
        for _ in range(5):
            assert await whole(source.stream("GET", "/stream")) == b"onetwo"
    assert server.connections == 1


async def test_close_ends_open_streams(server: ReplayServer) -> None:
    server.answers["/stream"] = stream([b"one"], Break.HOLD)
    async with upstream(server.url) as source:
        chunks = source.stream("GET", "/stream")
        assert await anext(chunks) == b"one"
        waiting = asyncio.create_task(anext(chunks, b""))
        await asyncio.sleep(0)
        await source.aclose()
        with pytest.raises(Unavailable):
            await waiting
        with pytest.raises(Unavailable, match="no longer in use"):
            await whole(source.stream("GET", "/stream"))
