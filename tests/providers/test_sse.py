"""Server-sent events: the standard's own examples, every way to cut bytes, and no event without an end."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.errors import Unavailable
from providers.sse import ServerSentEvent, read_events


async def cut_up(data: bytes, cuts: set[int]) -> AsyncGenerator[bytes, None]:
    edges = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    for start, end in pairwise(edges):
        yield data[start:end]


async def events_of(data: bytes, cuts: set[int] | None = None, **limits: int) -> list[tuple[str, str]]:
    async with aclosing(read_events(cut_up(data, cuts or set()), "Test", **limits)) as events:
        return [(event.event, event.data) async for event in events]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # The examples of the standard.
        ("data: YHOO\ndata: +2\ndata: 10\n\n", [("", "YHOO\n+2\n10")]),
        (
            ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n",
            ["first event", "second event"],
        ),
        ("data\n\ndata\ndata\n\n", ["", "\n"]),
        ("data:test\n\ndata: test\n\n", ["test", "test"]),
        # What it says of lines and fields.
        ("data: a\r\n\r\ndata: b\r\rdata: c\n\n", ["a", "b", "c"]),
        ("data: a\r\ndata: b\rdata: c\n\r\n", ["a\nb\nc"]),
        ("\ufeffdata: a\n\n\ufeffdata: lost\n\n", ["a"]),
        ("event: add\ndata: 1\n\ndata: 2\n\n", [("add", "1"), ("", "2")]),
        ("event: old\nevent: new\ndata: 1\n\n", [("new", "1")]),
        ("event: nothing\n\ndata: 1\n\n", ["1"]),
        ("data:  two blanks\n\n", [" two blanks"]),
        ("data: a:b\nDATA: x\n data: y\nretry: 5\nunknown\n\n", ["a:b"]),
        (": ping\n: ping\n\n:\ndata: a\n: between\ndata: b\n\n", ["a\nb"]),
        (
            'data: {"a": "x\u2028\u2029\u0085\x0b\x0c\x1cy"}\n\n',
            ['{"a": "x\u2028\u2029\u0085\x0b\x0c\x1cy"}'],
        ),
        ("", []),
        ("\n\n\r\n", []),
        # What it does not say.
        ("data: a\n\ndata: [DONE]\n", ["a", "[DONE]"]),
        ("data: a\n\ndata: [DONE]", ["a", "[DONE]"]),
        (
            'data: a\n\n{\n  "error": {\n    "code": 503\n  }\n}\n',
            ["a", '{\n  "error": {\n    "code": 503\n  }\n}'],
        ),
        ('[{"error": 1}]', ['[{"error": 1}]']),
        ('data: a\n\ndata: b\n{"error": 1}\n', ["a", '{"error": 1}']),
        ("<html>\n<p>{}\n\n", []),
    ],
)
async def test_events(body: str, expected: list[str | tuple[str, str]]) -> None:
    whole = [event if isinstance(event, tuple) else ("", event) for event in expected]
    data = body.encode()
    assert await events_of(data) == whole
    assert await events_of(data, set(range(len(data)))) == whole


async def test_bytes_that_are_no_text() -> None:
    assert await events_of(b"data: a\xffb\xe2\x82\n\n") == [("", "a\ufffdb\ufffd")]


BODY = (
    "\ufeff: hello\r\n\r\nevent: add\r\ndata: é€😀\r\n\r\ndata: x\u2028y\rdata:\r\rdata: 1\ndata: 2\n\n"
    'id: 5\ndata\n\n{"error":\n "tail"}\n\ndata: [DONE]'
).encode()
EVENTS = [
    ("add", "é€😀"),
    ("", "x\u2028y\n"),
    ("", "1\n2"),
    ("", ""),
    ("", '{"error":\n "tail"}'),
    ("", "[DONE]"),
]


@given(st.sets(st.integers(0, len(BODY))))
async def test_events_are_the_same_however_they_are_cut(cuts: set[int]) -> None:
    assert await events_of(BODY, cuts) == EVENTS


LINES = st.sampled_from(
    [b"data: x", b"data", b"event: e", b": c", b"{", b"}", b"id: 1", b"\xff", b"", b"\xef\xbb\xbf"]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n", b""])


@given(st.lists(st.tuples(LINES, ENDS), max_size=20), st.sets(st.integers(0, 160)))
async def test_any_body_is_the_same_however_it_is_cut(
    lines: list[tuple[bytes, bytes]], cuts: set[int]
) -> None:
    body = b"".join(line + end for line, end in lines)
    outcomes: list[list[tuple[str, str]] | str] = []
    for where in (set[int](), cuts, set(range(len(body)))):
        try:
            outcomes.append(await events_of(body, where, max_event_bytes=40))
        except Unavailable as error:
            outcomes.append(error.message)
    assert outcomes[0] == outcomes[1] == outcomes[2]


@given(st.binary(max_size=300))
async def test_no_bytes_crash_it(data: bytes) -> None:
    assert all(isinstance(event, tuple) for event in await events_of(data))


async def test_an_event_comes_with_its_blank_line_and_not_with_the_next_byte() -> None:
    """Also where the line ends with a carriage return, which a line feed may still follow."""

    async def body() -> AsyncGenerator[bytes, None]:
        yield b"data: a\r\r"
        pytest.fail("nothing more is needed for the event")

    events = read_events(body(), "Test")
    assert await anext(events) == ServerSentEvent("", "a")
    await events.aclose()


@pytest.mark.parametrize("piece", [b"x" * 100, b"data: " + b"x" * 93 + b"\n", b"event: " + b"x" * 92 + b"\n"])
async def test_an_event_without_end_is_not_kept(piece: bytes) -> None:
    taken = 0

    async def junk() -> AsyncGenerator[bytes, None]:
        nonlocal taken
        for _ in range(100):
            taken += 100
            yield piece

    events = read_events(junk(), "Test", max_event_bytes=1000)
    with pytest.raises(Unavailable, match="an event of more than 1000 bytes"):
        await anext(events)
    assert taken <= 1200


async def test_keep_alives_never_add_up() -> None:
    body = b": ping\n" * 1000 + b"data: a\n\n"
    assert await events_of(body, max_event_bytes=100) == [("", "a")]


async def test_closing_closes_the_source() -> None:
    closed = False

    async def body() -> AsyncGenerator[bytes, None]:
        nonlocal closed
        try:
            while True:
                yield b"data: a\n\n"
        finally:
            closed = True

    async with aclosing(read_events(body(), "Test")) as events:
        await anext(events)
    assert closed
