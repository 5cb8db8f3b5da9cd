"""The one HTTP client of every provider: how it waits, and how its failures become ours."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from operator import attrgetter
from types import MappingProxyType
from typing import TypeVar, cast

import httpx
import msgspec

from providers.errors import (
    BadCredentials,
    BadRequest,
    ModelNotFound,
    Overloaded,
    ProviderError,
    QuotaExceeded,
    TimedOut,
    Unavailable,
)

MAX_LINE_BYTES = 1 << 20
MAX_BODY_BYTES = 16 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_ERROR_CHARACTERS = 400
ERROR_BODY_SECONDS = 2.0
MASK = "[hidden]"
_SHORTEST_SECRET = 6

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HttpFailure:
    """An answer that is an error. ``text`` is what the server said about it; ``None`` if it said nothing in
    a form that an API uses (a proxy's HTML page, an empty body). ``body`` is the decoded JSON that says it,
    for the vendor's own codes."""

    status: int
    text: str | None
    retry_after_seconds: float | None = None
    body: object = field(default=None, repr=False)


_BY_STATUS: dict[int, type[ProviderError]] = {
    401: BadCredentials,
    402: QuotaExceeded,
    403: BadCredentials,
    404: ModelNotFound,
    408: Unavailable,
    409: Overloaded,  # both vendors that send it say to come again
    429: Overloaded,
    503: Overloaded,
    529: Overloaded,
}


def error_class(failure: HttpFailure) -> type[ProviderError]:
    """What a status means where the vendor says nothing more precise."""
    if failure.status == 404 and failure.text is None:
        return Unavailable  # the address is wrong, not the model's name
    if failure.status in _BY_STATUS:
        return _BY_STATUS[failure.status]
    return BadRequest if 400 <= failure.status < 500 else Unavailable


def error_text(body: object) -> str | None:
    """The message of a decoded error object, in any shape that vendors use; ``None`` if it is none."""
    match body:
        case {"error": str(text)} if text:
            pass
        case {"error": {"message": str(text)}} if text:
            pass
        case {"error": error} | {"detail": [_, *_] as error} if error:
            text = msgspec.json.encode(error).decode()
        case {"message": str(text)} | {"detail": str(text)} if text:
            pass
        case [dict() as inner]:
            return error_text(inner)
        case _:
            return None
    return " ".join(text.split())


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """When to come back, from ``retry-after-ms`` or ``retry-after`` (seconds or a date); ``None`` if the
    server does not say, or says nonsense."""
    seconds: float | None = None
    with suppress(ValueError):
        seconds = float(headers["retry-after-ms"]) / 1000 if "retry-after-ms" in headers else None
    value = headers.get("retry-after", "")
    if seconds is None and value:
        try:
            seconds = float(value)
        except ValueError:
            with suppress(ValueError, OverflowError):
                date = parsedate_to_datetime(value)
                seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
    return max(0.0, seconds) if seconds is not None and math.isfinite(seconds) else None


class Upstream:
    """One HTTP server that a provider talks to. Raises only ``ProviderError``.

    Messages name it by ``label``: its name and origin, never a URL's user information, path or query, and
    never what ``headers`` hold, also where the server repeats that. A redirect is not followed, so that no
    key goes anywhere else. Nothing here limits how long a stream may be silent: ``reply.complete_reply``
    does.
    """

    def __init__(
        self,
        base_url: str,
        *,
        name: str,
        connect_timeout_seconds: float,
        classify: Callable[[HttpFailure], type[ProviderError]] = error_class,
        retry_after: Callable[[HttpFailure], float | None] = attrgetter("retry_after_seconds"),
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """``headers`` go with every request. Raises ValueError for one that HTTP cannot send."""
        url = httpx.URL(base_url)
        self.origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
        self.label = f"{name} at {self.origin}"
        self._classify = classify
        self._retry_after = retry_after
        self._secrets = _secrets(headers)
        # trust_env is off: the environment would put a proxy between us and localhost, and ~/.netrc would
        # add credentials that nobody configured. There is no limit on connections: a list or a health check
        # must not queue behind a hundred streams. identity: compression would hold tokens back.
        self._client = httpx.AsyncClient(
            base_url=base_url,
            timeout=httpx.Timeout(None, connect=connect_timeout_seconds),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30.0),
            headers={"accept-encoding": "identity", "content-type": "application/json", **headers},
            follow_redirects=False,
            trust_env=False,
        )

    async def stream(self, method: str, path: str, body: bytes = b"") -> AsyncGenerator[bytes, None]:
        """The body's bytes as they arrive. Closing the generator closes the connection at once."""
        if self._client.is_closed:
            raise Unavailable(f"{self.label} is no longer in use")
        with self._translated():
            async with self._client.stream(method, path, content=body) as response:
                if not response.is_success:
                    raise self.error(await _failure(response))
                async with aclosing(_chunks(response)) as chunks:
                    async for chunk in chunks:
                        yield chunk

    async def fetch(self, method: str, path: str, body: bytes = b"", *, timeout_seconds: float) -> bytes:
        """The whole body, within a time limit that covers everything from connecting on."""
        whole = bytearray()
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                aclosing(self.stream(method, path, body)) as chunks,
            ):
                async for chunk in chunks:
                    whole += chunk
                    if len(whole) > MAX_BODY_BYTES:
                        raise Unavailable(f"{self.label} answered with more than {MAX_BODY_BYTES} bytes")
        except TimeoutError:
            raise TimedOut(f"{self.label} did not answer within {timeout_seconds:g} s") from None
        return bytes(whole)

    def decode(self, data: bytes | str, decoder: msgspec.json.Decoder[T]) -> T:
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unavailable(f"{self.label} sent something that is not what its API sends") from error

    def error(self, failure: HttpFailure) -> ProviderError:
        status = f"HTTP {failure.status}"
        said = f"{self.shown(failure.text)} ({status})" if failure.text else status
        return self._classify(failure)(
            f"{self.label} answered: {said}", retry_after_seconds=self._retry_after(failure)
        )

    def shown(self, text: str) -> str:
        """What the server says, as people may see it: without what ``headers`` hold, and not too long."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text if len(text) <= MAX_ERROR_CHARACTERS else text[: MAX_ERROR_CHARACTERS - 1] + "…"

    async def aclose(self) -> None:
        """Close every connection, those of open streams too; these end with ``Unavailable``."""
        await self._client.aclose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError) as error:
            raise Unavailable(f"{self.label} {_happened(error)}") from error


def _secrets(headers: Mapping[str, str]) -> tuple[str, ...]:
    """What must not be shown. Not all of it is a key, but whatever a vendor calls its header, the key is
    among it; after a scheme (``Bearer``) it is the last word."""
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"the header {name} has characters that HTTP cannot send")  # httpx would show it
    words = {value.rpartition(" ")[2] for value in headers.values()}
    return tuple(word for word in words if len(word) >= _SHORTEST_SECRET)


def _happened(error: Exception) -> str:
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.ProxyError():
            return "cannot be reached"
        case httpx.TimeoutException():
            return "did not answer in time"
        case httpx.NetworkError() | httpx.RemoteProtocolError():
            return "broke the connection"
        case _:
            return f"cannot be talked to ({type(error).__name__})"


def _chunks(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    return cast("AsyncGenerator[bytes, None]", response.aiter_bytes())  # declared as a mere iterator


async def _failure(response: httpx.Response) -> HttpFailure:
    """Read an error answer, as far as it can be had: the status counts even if its body never comes."""
    body = bytearray()
    with suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(ERROR_BODY_SECONDS), aclosing(_chunks(response)) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_ERROR_BYTES:
                    break
    said: object = None
    text = None
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = msgspec.json.decode(body)
        text = error_text(said)
    retry_after = retry_after_seconds(response.headers, datetime.now(UTC))
    return HttpFailure(response.status_code, text, retry_after, said)


async def read_lines(
    chunks: AsyncGenerator[bytes, None], label: str, *, max_line_bytes: int = MAX_LINE_BYTES
) -> AsyncGenerator[bytes, None]:
    r"""The lines of an NDJSON body, whole and in bytes, however the network cut it; blank ones are left out.

    Lines end at the byte 0x0A and nowhere else. In UTF-8 that byte is never part of another character, so
    that decoding a whole line is decoding incrementally; U+2028 and \r inside a line stay what they are.
    """
    pending = bytearray()
    async with aclosing(chunks):
        async for chunk in chunks:
            *ended, rest = chunk.split(b"\n")
            for part in ended:
                line = bytes(pending + part)
                pending.clear()
                if line.strip():
                    yield line
            pending += rest
            if len(pending) > max_line_bytes:
                raise Unavailable(f"{label} sent a line of more than {max_line_bytes} bytes")
    if pending.strip():
        yield bytes(pending)
