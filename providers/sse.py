"""Reads server-sent events, as the HTML standard has them, from a provider's bytes."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from providers.errors import Unavailable

MAX_EVENT_BYTES = 1 << 20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """``event`` is its type, empty where none was sent; ``data`` its data lines, joined by line feeds."""

    event: str
    data: str


async def read_events(
    chunks: AsyncGenerator[bytes, None], label: str, *, max_event_bytes: int = MAX_EVENT_BYTES
) -> AsyncGenerator[ServerSentEvent, None]:
    """The events of a body, however the network cut it. https://html.spec.whatwg.org/#event-stream-interpretation

    It departs from the standard, which is about pages, in two points. An event that the end of the body
    cuts off counts, since some servers leave out its blank line: half of a JSON text is none, and whoever
    decodes it sees that. And a JSON text that stands there without ``data:`` is passed on like an event,
    since that is how some servers tell of an error. Raises Unavailable for an event without an end.
    """
    event = _Event()
    async with aclosing(_read_lines(chunks, label, max_event_bytes)) as lines:
        async for line in lines:
            if event.size_bytes + len(line) > max_event_bytes:
                raise _too_long(label, max_event_bytes)
            if line:
                event.add(line)
            elif (whole := event.end()) is not None:
                yield whole
    if (whole := event.end()) is not None:
        yield whole


class _Event:
    """The event that is being read. ``size_bytes`` is what its lines take; comments do not belong to it."""

    def __init__(self) -> None:
        self._type = b""
        self._data: list[bytes] = []
        self._stray: list[bytes] = []
        self.size_bytes = 0

    def add(self, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        if colon and not name:
            return
        self.size_bytes += len(line)
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._type = value.removeprefix(b" ")
        elif name not in (b"id", b"retry"):
            self._stray.append(line)

    def end(self) -> ServerSentEvent | None:
        """What has been read, if it is something; the next line begins another event."""
        data = self._data
        if self._stray and self._stray[0].lstrip()[:1] in (b"{", b"["):
            data = self._stray
        event = ServerSentEvent(_text(self._type), _text(b"\n".join(data))) if data else None
        self._type, self._data, self._stray, self.size_bytes = b"", [], [], 0
        return event


def _text(data: bytes) -> str:
    return data.decode(errors="replace")  # as the standard wants it


async def _read_lines(
    chunks: AsyncGenerator[bytes, None], label: str, max_line_bytes: int
) -> AsyncGenerator[bytes, None]:
    r"""Lines end with \n, \r\n or \r and nowhere else. One that \r ends is whole at once: whether \n
    belongs to it may come to light only with the next event."""
    pending = bytearray()
    after_return = False
    mark = _BYTE_ORDER_MARK
    async with aclosing(chunks):
        async for chunk in chunks:
            if not chunk:
                continue
            text = chunk.removeprefix(b"\n") if after_return else chunk
            after_return = chunk.endswith(b"\r")
            *ended, rest = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            for part in ended:
                line = bytes(pending + part)
                pending.clear()
                yield line.removeprefix(mark)
                mark = b""
            pending += rest
            if len(pending) > max_line_bytes:
                raise _too_long(label, max_line_bytes)
    if pending:
        yield bytes(pending).removeprefix(mark)


def _too_long(label: str, max_bytes: int) -> Unavailable:
    return Unavailable(f"{label} sent an event of more than {max_bytes} bytes")
