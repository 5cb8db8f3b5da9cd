"""The one HTTP client of every provider: how it waits, and how its failures become ours."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
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
    Unavailable,
)

MAX_LINE_BYTES = 1 << 20
MAX_BODY_BYTES = 16 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_ERROR_CHARACTERS = 400
ERROR_BODY_SECONDS = 2.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HttpFailure:
    """An answer that is an error. ``text`` is what the server said about it; ``None`` if it said nothing in
    a form that an API uses (a proxy's HTML page, an empty body)."""

    status: int
    text: str | None
    retry_after_seconds: float | None = None


_BY_STATUS: dict[int, type[ProviderError]] = {
    401: BadCredentials,
    402: QuotaExceeded,
    403: BadCredentials,
    404: ModelNotFound,
    408: Unavailable,
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
        case {"error": error} if error:
            text = msgspec.json.encode(error).decode()
        case {"message": str(text)} | {"detail": str(text)} if text:
            pass
        case _:
            return None
    text = " ".join(text.split())
    return text if len(text) <= MAX_ERROR_CHARACTERS else text[: MAX_ERROR_CHARACTERS - 1] + "…"


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
            with suppress(ValueError):
                date = parsedate_to_datetime(value)
                seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
    return max(0.0, seconds) if seconds is not None and math.isfinite(seconds) else None


class Upstream:
    """One HTTP server that a provider talks to. Raises only ``ProviderError``.

    Messages name it by ``label``: its name and origin, never a URL's user information, path or query.
    Nothing here limits how long a stream may be silent: ``reply.complete_reply`` does.
    """

    def __init__(
        self,
        base_url: str,
        *,
        name: str,
        connect_timeout_seconds: float,
        classify: Callable[[HttpFailure], type[ProviderError]] = error_class,
    ) -> None:
        url = httpx.URL(base_url)
        self.origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
        self.label = f"{name} at {self.origin}"
        self._classify = classify
        # trust_env is off: the environment would put a proxy between us and localhost, and ~/.netrc would
        # add credentials that nobody configured. There is no limit on connections: a list or a health check
        # must not queue behind a hundred streams. identity: compression would hold tokens back.
        self._client = httpx.AsyncClient(
            base_url=base_url,
            timeout=httpx.Timeout(None, connect=connect_timeout_seconds),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30.0),
            headers={"accept-encoding": "identity", "content-type": "application/json"},
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
            raise Unavailable(f"{self.label} did not answer within {timeout_seconds:g} s") from None
        return bytes(whole)

    def decode(self, data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unavailable(f"{self.label} sent something that is not what its API sends") from error

    def error(self, failure: HttpFailure) -> ProviderError:
        said = f"{failure.text} (HTTP {failure.status})" if failure.text else f"HTTP {failure.status}"
        return self._classify(failure)(
            f"{self.label} answered: {said}", retry_after_seconds=failure.retry_after_seconds
        )

    async def aclose(self) -> None:
        """Close every connection, those of open streams too; these end with ``Unavailable``."""
        await self._client.aclose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError) as error:
            raise Unavailable(f"{self.label} {_happened(error)}") from error


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
    text = None
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = error_text(msgspec.json.decode(body))
    return HttpFailure(response.status_code, text, retry_after_seconds(response.headers, datetime.now(UTC)))


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
