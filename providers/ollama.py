"""Ollama over its native API; its OpenAI layer loses errors, thinking and the window's size."""

import asyncio
import ipaddress
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from providers.base import (
    ChatRequest,
    Finished,
    FinishReason,
    LoadedModel,
    ModelCapabilities,
    ModelInfo,
    ModelMetadata,
    ModelState,
    ModelType,
    Phase,
    PhaseChanged,
    ProviderEvent,
    ReasoningDelta,
    TextDelta,
    UsageReport,
)
from providers.errors import (
    CapabilityMissing,
    ContextTooLong,
    LoadFailed,
    OutOfMemory,
    ProviderError,
)
from providers.http import HttpFailure, Upstream, error_class, error_text, read_lines
from providers.ollama_wire import (
    ANYTHING,
    CHUNK,
    SHOW,
    TAGS,
    VERSION,
    Chat,
    Chunk,
    Keep,
    Options,
    Show,
    Tag,
    Turn,
)
from providers.reply import ReplyLimits, complete_reply

DETAIL_REQUESTS = 8
MAX_LICENSE_CHARACTERS = 80
_POLL_SECONDS = 0.05

T = TypeVar("T")

_HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")


@dataclass(frozen=True, slots=True)
class OllamaSettings:
    """``base_url`` as ``host_url`` makes it. The first token may have to wait for the model to be loaded.
    A list is given ``list_timeout_seconds`` in all, details included: less than the registry gives it."""

    base_url: str = field(repr=False)
    connect_timeout_seconds: float = 2.0
    first_token_timeout_seconds: float = 300.0
    stream_timeout_seconds: float = 300.0
    list_timeout_seconds: float = 1.5
    name: str = "ollama"


def host_url(host: str) -> str:
    """The URL that an ``OLLAMA_HOST`` means, by Ollama's own rules (``envconfig.Host``).

    ``host``, ``host:port``, ``:port``, ``http://host`` (port 80, as there), ``https://host``, a path after
    any of them, nothing at all. An address to listen on becomes the one to connect to. Raises ValueError.
    """
    text = host.strip()
    scheme, separator, rest = text.partition("://") if "://" in text else ("http", "", text)
    expected = f"expected host, host:port or http(s)://host:port, not {text.rpartition('@')[2]!r}"
    if scheme not in ("http", "https") or any(not c.isprintable() or c in " ?#\\" for c in rest):
        raise ValueError(expected)
    address, slash, path = rest.partition("/")
    if _is_address(address.strip("[]")) and ":" in address:
        rest = f"[{address.strip('[]')}]{slash}{path}"
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        name = parts.hostname or "127.0.0.1"
        port = parts.port if parts.port is not None else _default_port(scheme, explicit=bool(separator))
        ascii_name = name if _is_address(name) else name.encode("idna").decode()
    except (ValueError, UnicodeError):
        raise ValueError(expected) from None
    if not _is_address(name) and not _HOST_NAME.fullmatch(ascii_name):
        raise ValueError(expected)
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, ascii_name)  # noqa: S104
    user, at, _ = parts.netloc.rpartition("@")
    return f"{scheme}://{user}{at}{f'[{name}]' if ':' in name else name}:{port}{parts.path.rstrip('/')}"


def _default_port(scheme: str, *, explicit: bool) -> int:
    if not explicit:
        return 11434
    return 443 if scheme == "https" else 80


def _is_address(text: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(text)
        return True
    return False


class Ollama:
    def __init__(self, settings: OllamaSettings) -> None:
        self._settings = settings
        self._limits = ReplyLimits(settings.first_token_timeout_seconds, settings.stream_timeout_seconds)
        self._upstream = Upstream(
            settings.base_url,
            name="Ollama",
            connect_timeout_seconds=settings.connect_timeout_seconds,
            classify=_classify,
        )
        self._details: dict[str, Show] = {}  # by digest: what a digest names never changes

    @property
    def name(self) -> str:
        return self._settings.name

    def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        return complete_reply(self._reply(request), self._limits, self._upstream.label)

    async def models(self) -> list[ModelInfo]:
        """Every model that can chat. Details and states that cannot be had in time are missing, no more."""
        deadline = asyncio.get_running_loop().time() + self._settings.list_timeout_seconds
        tags = (await self._fetch("GET", "/api/tags", TAGS)).models or []
        loaded: dict[str, LoadedModel] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline), asyncio.TaskGroup() as group:
                group.create_task(self._note_loaded(loaded))
                group.create_task(self._learn(tags))
        self._details = {tag.digest: self._details[tag.digest] for tag in tags if tag.digest in self._details}
        listed = (self._info(tag, loaded.get(tag.name)) for tag in tags)
        return [info for info in listed if info is not None]

    def find(self, name: str, listed: Sequence[ModelInfo]) -> ModelInfo | None:
        """A name without a tag means its ``latest``, as everywhere in Ollama."""
        by_name = {info.name: info for info in listed}
        return by_name.get(name) or by_name.get(f"{name}:latest")

    async def load(self, model: str) -> AsyncGenerator[PhaseChanged, None]:
        yield PhaseChanged(Phase.LOADING_MODEL)
        await self._keep(Keep(model), self._settings.first_token_timeout_seconds)

    async def unload(self, model: str) -> None:
        """Ollama ends the replies that it is at first. One that answers at once is not done at once: what
        it reports is awaited for a while."""
        await self._keep(Keep(model, keep_alive=0), self._settings.list_timeout_seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.list_timeout_seconds):
                while any(loaded.name == model for loaded in await self.loaded()):  # noqa: ASYNC110 - no bell
                    await asyncio.sleep(_POLL_SECONDS)

    async def loaded(self) -> list[LoadedModel]:
        running = (await self._fetch("GET", "/api/ps", TAGS)).models or ()
        return [LoadedModel(model.name, memory_bytes=model.size) for model in running]

    async def check(self) -> None:
        await self._fetch("GET", "/api/version", VERSION)

    async def aclose(self) -> None:
        await self._upstream.aclose()

    async def _reply(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        yield PhaseChanged(Phase.WAITING)
        body = self._upstream.stream("POST", "/api/chat", _chat_body(request))
        async with aclosing(read_lines(body, self._upstream.label)) as lines:
            async for line in lines:
                if b'"error"' in line and (text := error_text(self._upstream.decode(line, ANYTHING))):
                    raise self._upstream.error(HttpFailure(500, text))
                for event in _events(self._upstream.decode(line, CHUNK)):
                    yield event

    async def _fetch(self, method: str, path: str, decoder: msgspec.json.Decoder[T], body: bytes = b"") -> T:
        timeout_seconds = self._settings.list_timeout_seconds
        data = await self._upstream.fetch(method, path, body, timeout_seconds=timeout_seconds)
        return self._upstream.decode(data, decoder)

    async def _keep(self, order: Keep, timeout_seconds: float) -> None:
        body = msgspec.json.encode(order)
        await self._upstream.fetch("POST", "/api/generate", body, timeout_seconds=timeout_seconds)

    async def _note_loaded(self, loaded: dict[str, LoadedModel]) -> None:
        with suppress(ProviderError):
            loaded.update({model.name: model for model in await self.loaded()})

    async def _learn(self, tags: Sequence[Tag]) -> None:
        unknown = {tag.digest: tag.name for tag in tags if tag.digest not in self._details}
        slots = asyncio.Semaphore(DETAIL_REQUESTS)

        async def learn(digest: str, name: str) -> None:
            async with slots:
                with suppress(ProviderError):
                    body = msgspec.json.encode({"model": name})
                    self._details[digest] = await self._fetch("POST", "/api/show", SHOW, body)

        async with asyncio.TaskGroup() as group:
            for digest, name in unknown.items():
                group.create_task(learn(digest, name))

    def _info(self, tag: Tag, residency: LoadedModel | None) -> ModelInfo | None:
        """``None`` for a model that cannot chat: one that only embeds, for example."""
        show = self._details.get(tag.digest, Show())
        can = show.capabilities if show.capabilities is not None else tag.capabilities
        if can is not None and "completion" not in can:
            return None
        facts = show.model_info or {}
        architecture = _text(facts.get("general.architecture")) or tag.details.family
        vision, tools, reasoning = (
            None if can is None else wanted in can for wanted in ("vision", "tools", "thinking")
        )
        languages = facts.get("general.languages")
        return ModelInfo(
            name=tag.name,
            source=self._upstream.origin,
            display_name=tag.name,
            type=ModelType.VISION if vision else ModelType.CHAT,
            capabilities=ModelCapabilities(
                vision=vision,
                tools=tools,
                reasoning=reasoning,
                max_context_tokens=_count(facts.get(f"{architecture}.context_length"))
                or tag.details.context_length,
                languages=tuple(map(str, languages)) if isinstance(languages, list) else (),
            ),
            metadata=ModelMetadata(
                size_bytes=tag.size,
                parameters=_count(facts.get("general.parameter_count"))
                or parameter_count(tag.details.parameter_size),
                architecture=architecture,
                quantization=tag.details.quantization_level,
                license=_text(facts.get("general.license")) or _first_line(show.license),
                updated_at=tag.modified_at,
            ),
            state=ModelState.READY if residency else ModelState.COLD,
            residency=residency,
        )


def parameter_count(size: str | None) -> int | None:
    """``"134.52M"`` as 134520000; ``None`` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT])", size or "")
    return round(float(match[1]) * {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[match[2]]) if match else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _first_line(text: str | None) -> str | None:
    line = next((line.strip() for line in (text or "").splitlines() if line.strip()), None)
    return line[:MAX_LICENSE_CHARACTERS] if line else None


# Ollama's errors have no codes; these pieces of its texts are what there is to go by.
_BY_TEXT: tuple[tuple[str, type[ProviderError]], ...] = (
    ("does not support", CapabilityMissing),
    ("prompt is longer than the context", ContextTooLong),
    ("more system memory", OutOfMemory),
    ("out of memory", OutOfMemory),
    ("resource limitations", OutOfMemory),
    ("unable to load model", LoadFailed),
    ("unknown model architecture", LoadFailed),
)


def _classify(failure: HttpFailure) -> type[ProviderError]:
    said = (failure.text or "").lower()
    return next((error for piece, error in _BY_TEXT if piece in said), error_class(failure))


def _events(chunk: Chunk) -> Iterator[ProviderEvent]:
    if chunk.message.thinking:
        yield ReasoningDelta(chunk.message.thinking)
    if chunk.message.content:
        yield TextDelta(chunk.message.content)
    # "load" and "unload" report on the model: no reply ends with them.
    if chunk.done and chunk.done_reason not in ("load", "unload"):
        yield UsageReport(chunk.prompt_eval_count, chunk.eval_count)
        yield Finished(FinishReason.LENGTH if chunk.done_reason == "length" else FinishReason.STOP)


def _chat_body(request: ChatRequest) -> bytes:
    options = request.options
    return msgspec.json.encode(
        Chat(
            model=request.model,
            messages=[Turn(message.role, message.content) for message in request.messages],
            options=Options(
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                num_predict=options.max_tokens,
                seed=options.seed,
                stop=options.stop,
            ),
        )
    )
