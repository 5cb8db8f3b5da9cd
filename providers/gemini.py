"""Gemini over Google's own API."""

import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar
from urllib.parse import quote

import msgspec

from providers.base import (
    ChatMessage,
    ChatRequest,
    Finished,
    FinishReason,
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
    BadCredentials,
    CapabilityMissing,
    ContentFiltered,
    ContextTooLong,
    ProviderError,
    QuotaExceeded,
    Unavailable,
)
from providers.gemini_wire import (
    ANYTHING,
    CHUNK,
    MODELS,
    Candidate,
    Chat,
    Chunk,
    Model,
    Models,
    Options,
    Text,
    Thinking,
    Turn,
    status_of,
)
from providers.http import HttpFailure, Upstream, error_class, error_text
from providers.reply import ReplyLimits, complete_reply
from providers.sse import read_events

GEMINI_URL = "https://generativelanguage.googleapis.com"
MAX_STOP_STRINGS = 5
PAGE_SIZE = 1000
MAX_PAGES = 10

_ROLES = {Role.USER: "user", Role.ASSISTANT: "model"}

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class GeminiSettings:
    """``base_url`` with or without its ``/v1beta``. ``api_key`` empty: none is sent. A page of the list is
    given ``list_timeout_seconds``: less than the registry gives the list."""

    base_url: str = GEMINI_URL
    api_key: str = field(default="", repr=False)
    connect_timeout_seconds: float = 5.0
    first_token_timeout_seconds: float = 300.0
    stream_timeout_seconds: float = 300.0
    list_timeout_seconds: float = 1.8
    name: str = "gemini"


class Gemini:
    def __init__(self, settings: GeminiSettings) -> None:
        self._settings = settings
        self._limits = ReplyLimits(settings.first_token_timeout_seconds, settings.stream_timeout_seconds)
        self._upstream = Upstream(
            settings.base_url.rstrip("/").removesuffix("/v1beta"),
            name="Gemini",
            connect_timeout_seconds=settings.connect_timeout_seconds,
            classify=_classify,
            retry_after=_retry_after_seconds,
            headers={"x-goog-api-key": settings.api_key} if settings.api_key else {},
        )
        self._listed: dict[str, Model] = {}  # by name, as the newest list has them

    @property
    def name(self) -> str:
        return self._settings.name

    def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        return complete_reply(self._reply(request), self._limits, self._upstream.label)

    async def models(self) -> list[ModelInfo]:
        """Every model that can chat."""
        models: list[Model] = []
        after = ""
        for _ in range(MAX_PAGES):
            page = await self._fetch(f"/v1beta/models?pageSize={PAGE_SIZE}{after}")
            models += page.models
            if not page.next_page_token:
                break
            after = f"&pageToken={quote(page.next_page_token, safe='')}"
        self._listed = {_short_name(model): model for model in models if _chats(model)}
        return [self._info(name, model) for name, model in self._listed.items()]

    async def check(self) -> None:
        await self._fetch("/v1beta/models?pageSize=1")

    async def aclose(self) -> None:
        await self._upstream.aclose()

    async def _reply(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The reply ends with its body: some models send a finish reason with every chunk."""
        yield PhaseChanged(Phase.WAITING)
        usage, finish = UsageReport(None, None), None
        chat = _chat_body(request, self._listed.get(request.model, Model(request.model)))
        path = f"/v1beta/models/{quote(request.model, safe='')}:streamGenerateContent?alt=sse"
        body = self._upstream.stream("POST", path, chat)
        async with aclosing(read_events(body, self._upstream.label)) as events:
            async for sent in events:
                chunk = self._chunk(sent.data)
                for candidate in (chunk.candidates or ())[:1]:
                    for delta in _deltas(candidate):
                        yield delta
                if (newer := _usage(chunk, usage)) != usage:
                    usage = newer
                    yield usage
                finish = self._finish(chunk) or finish
        if finish:
            yield finish

    def _chunk(self, data: str) -> Chunk:
        """Raises for an error in the place of a chunk."""
        if '"error"' in data and (text := error_text(said := self._upstream.decode(data, ANYTHING))):
            raise self._upstream.error(HttpFailure(status_of(said).code, text, body=said))
        return self._upstream.decode(data, CHUNK)

    def _finish(self, chunk: Chunk) -> Finished | None:
        """How the reply ended, if it says so. Raises for an end that is no success."""
        label, feedback = self._upstream.label, chunk.prompt_feedback
        if feedback and feedback.block_reason:
            why = self._upstream.shown(feedback.block_reason_message or feedback.block_reason)
            raise ContentFiltered(f"{label} blocked the prompt: {why}")
        last = chunk.candidates[0] if chunk.candidates else Candidate()
        why = self._upstream.shown(last.finish_message or last.finish_reason or "")
        match last.finish_reason:
            case None | "FINISH_REASON_UNSPECIFIED":
                return None
            case "STOP":
                return Finished(FinishReason.STOP)
            case "MAX_TOKENS":
                return Finished(FinishReason.LENGTH)
            case reason if reason in _FILTERED:
                raise ContentFiltered(f"{label} withheld its reply: {why}")
            case "LANGUAGE":
                raise CapabilityMissing(f"{label} does not speak the language: {why}")
            case _:
                raise Unavailable(f"{label} ended its reply with {why!r}")

    async def _fetch(self, path: str) -> Models:
        data = await self._upstream.fetch("GET", path, timeout_seconds=self._settings.list_timeout_seconds)
        return self._upstream.decode(data, MODELS)

    def _info(self, name: str, model: Model) -> ModelInfo:
        """The list does not say who sees; of those named Gemini all do."""
        vision = name.startswith("gemini-") or None
        return ModelInfo(
            name=name,
            source=self._upstream.origin,
            display_name=model.display_name or name,
            type=ModelType.VISION if vision else ModelType.CHAT,
            description=model.description,
            capabilities=ModelCapabilities(
                vision=vision, reasoning=model.thinking, max_context_tokens=model.input_token_limit
            ),
            state=ModelState.READY,
        )


def _short_name(model: Model) -> str:
    return model.name.removeprefix("models/")


def _chats(model: Model) -> bool:
    """Those that speak aloud are asked in the same way, but answer no text; only their names tell."""
    return "generateContent" in model.supported_generation_methods and not model.name.endswith("-tts")


def _deltas(candidate: Candidate) -> Iterator[TextDelta | ReasoningDelta]:
    for part in (candidate.content and candidate.content.parts) or ():
        if part.text:
            yield ReasoningDelta(part.text) if part.thought else TextDelta(part.text)


def _usage(chunk: Chunk, last: UsageReport) -> UsageReport:
    """Counts are cumulative: the newest replace those before."""
    usage = chunk.usage_metadata
    return UsageReport(usage.prompt_token_count, usage.completion_tokens) if usage else last


_FILTERED = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
    }
)

# An INVALID_ARGUMENT or a RESOURCE_EXHAUSTED is many things; where no detail says so, its text tells which.
_BY_TEXT: tuple[tuple[str, type[ProviderError]], ...] = (
    ("exceeds the maximum number of tokens", ContextTooLong),
    ("credits are depleted", QuotaExceeded),
    ("spending cap", QuotaExceeded),
    ("is not supported by this model", CapabilityMissing),
    ("is not enabled for models/", CapabilityMissing),
)


def _classify(failure: HttpFailure) -> type[ProviderError]:
    status = status_of(failure.body)
    said = (failure.text or "").lower()
    if any(detail.reason.startswith("API_KEY_") for detail in status.details):
        return BadCredentials
    if any("PerDay" in violation.quota_id for detail in status.details for violation in detail.violations):
        return QuotaExceeded
    if status.status == "FAILED_PRECONDITION":
        return BadCredentials  # of this account: its country, or that nobody pays
    return next((error for piece, error in _BY_TEXT if piece in said), error_class(failure))


def _retry_after_seconds(failure: HttpFailure) -> float | None:
    """Google tells it in the body."""
    for detail in status_of(failure.body).details:
        with suppress(ValueError):
            seconds = float(detail.retry_delay.removesuffix("s"))
            if math.isfinite(seconds):
                return max(0.0, seconds)
    return failure.retry_after_seconds


def _chat_body(request: ChatRequest, model: Model) -> bytes:
    """Thoughts are asked for only where the model is known to think: others refuse. Raises CapabilityMissing.

    More tokens or a higher temperature than the model can have mean its most.
    """
    options = request.options
    if len(options.stop) > MAX_STOP_STRINGS:
        raise CapabilityMissing(f"Gemini takes {MAX_STOP_STRINGS} stop strings at most")
    prompts = [m.content for m in request.messages if m.role is Role.SYSTEM and m.content.strip()]
    return msgspec.json.encode(
        Chat(
            contents=_turns(request.messages),
            generation_config=Options(
                temperature=_at_most(options.temperature, model.max_temperature),
                top_p=options.top_p,
                top_k=options.top_k,
                max_output_tokens=_at_most(options.max_tokens, model.output_token_limit),
                seed=options.seed,
                stop_sequences=options.stop,
                thinking_config=Thinking(include_thoughts=True) if model.thinking else None,
            ),
            system_instruction=Turn([Text(prompt) for prompt in prompts]) if prompts else None,
        )
    )


def _at_most(value: Number | None, limit: Number | None) -> Number | None:
    return value if value is None or limit is None else min(value, limit)


def _turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Who speaks twice in a row has one turn; blank texts are left out."""
    spoken = (message for message in messages if message.role is not Role.SYSTEM and message.content.strip())
    return [
        Turn([Text(message.content) for message in turn], _ROLES[role])
        for role, turn in groupby(spoken, key=lambda message: message.role)
    ]
