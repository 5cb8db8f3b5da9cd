"""Claude over Anthropic's own Messages API."""

import logging
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import groupby
from urllib.parse import quote

import msgspec

from providers.anthropic_wire import (
    ANYTHING,
    EVENT,
    MODELS,
    Capabilities,
    Chat,
    Delta,
    Event,
    Model,
    Models,
    Supported,
    Text,
    Turn,
    Usage,
)
from providers.base import (
    ChatMessage,
    ChatRequest,
    Finished,
    FinishReason,
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
    BadRequest,
    CapabilityMissing,
    ContentFiltered,
    ContextTooLong,
    ProviderError,
    QuotaExceeded,
    Unavailable,
)
from providers.http import HttpFailure, Upstream, error_class, error_text
from providers.reply import ReplyLimits, complete_reply
from providers.sse import read_events

ANTHROPIC_URL = "https://api.anthropic.com"
API_VERSION = "2023-06-01"
DEFAULT_MAX_TOKENS = 4096
MAX_TEMPERATURE = 1.0
PAGE_SIZE = 1000
MAX_PAGES = 10

_log = logging.getLogger("parley.providers")


@dataclass(frozen=True, slots=True)
class AnthropicSettings:
    """``base_url`` with or without its ``/v1``. ``api_key`` empty: none is sent. A page of the list is given
    ``list_timeout_seconds``: less than the registry gives the list."""

    base_url: str = ANTHROPIC_URL
    api_key: str = field(default="", repr=False)
    connect_timeout_seconds: float = 5.0
    first_token_timeout_seconds: float = 300.0
    stream_timeout_seconds: float = 300.0
    list_timeout_seconds: float = 1.8
    name: str = "claude"


class Anthropic:
    def __init__(self, settings: AnthropicSettings) -> None:
        self._settings = settings
        self._limits = ReplyLimits(settings.first_token_timeout_seconds, settings.stream_timeout_seconds)
        self._upstream = Upstream(
            settings.base_url.rstrip("/").removesuffix("/v1"),
            name="Anthropic",
            connect_timeout_seconds=settings.connect_timeout_seconds,
            classify=_classify,
            headers={"anthropic-version": API_VERSION}
            | ({"x-api-key": settings.api_key} if settings.api_key else {}),
        )
        self._longest_replies: dict[str, int] = {}  # by model, as the newest list has them
        self._unsampled: set[str] = set()  # models that take no options of sampling

    @property
    def name(self) -> str:
        return self._settings.name

    def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        return complete_reply(self._reply(request), self._limits, self._upstream.label)

    async def models(self) -> list[ModelInfo]:
        """Every model of the account; all of them chat."""
        models: list[Model] = []
        after = ""
        for _ in range(MAX_PAGES):
            page = await self._fetch(f"/v1/models?limit={PAGE_SIZE}{after}")
            models += page.data
            if not page.has_more or not page.last_id:
                break
            after = f"&after_id={quote(page.last_id, safe='')}"
        self._longest_replies = {model.id: model.max_tokens for model in models if model.max_tokens}
        return [self._info(model) for model in models]

    async def check(self) -> None:
        await self._fetch("/v1/models?limit=1")

    async def aclose(self) -> None:
        await self._upstream.aclose()

    async def _reply(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        """A model that refuses to be told how to sample is not told, then and from then on."""
        yield PhaseChanged(Phase.WAITING)
        chat = self._chat(request)
        if request.model not in self._unsampled:
            began = False
            try:
                async with aclosing(self._read(chat)) as events:
                    async for event in events:
                        began = True
                        yield event
                return
            except SamplingRefused:
                if began:
                    raise
            self._unsampled.add(request.model)
            _log.info("%s does not take options of sampling for %s", self._upstream.label, request.model)
        async with aclosing(self._read(_unsampled(chat))) as events:
            async for event in events:
                yield event

    async def _read(self, chat: Chat) -> AsyncGenerator[ProviderEvent, None]:
        usage, finish = Usage(), None
        body = self._upstream.stream("POST", "/v1/messages", msgspec.json.encode(chat))
        async with aclosing(read_events(body, self._upstream.label)) as events:
            async for sent in events:
                event = self._event(sent.data)
                match event.type:
                    case "content_block_delta":
                        for delta in _deltas(event.delta):
                            yield delta
                    case "message_start":
                        # What it says of the reply's length is a placeholder.
                        usage = msgspec.structs.replace(event.message.usage, output_tokens=None)
                        yield UsageReport(usage.prompt_tokens, None)
                    case "message_delta":
                        usage = usage.replaced_by(event.usage)
                        yield UsageReport(usage.prompt_tokens, usage.output_tokens)
                        finish = self._finish(event.delta)
                    case "message_stop" if finish:
                        yield finish

    def _event(self, data: str) -> Event:
        """Raises for an error in the place of an event."""
        if '"error"' in data and (text := error_text(said := self._upstream.decode(data, ANYTHING))):
            raise self._upstream.error(HttpFailure(500, text, body=said))
        return self._upstream.decode(data, EVENT)

    def _chat(self, request: ChatRequest) -> Chat:
        """A temperature above Claude's range is its highest; with one there is no ``top_p``: of the two
        most models take one alone. A seed is not known there. Raises CapabilityMissing."""
        options = request.options
        if any(not stop.strip() for stop in options.stop):
            raise CapabilityMissing("Claude takes no stop string that is nothing but white space")
        prompts = (message.content for message in request.messages if message.role is Role.SYSTEM)
        max_tokens = options.max_tokens or DEFAULT_MAX_TOKENS
        temperature = options.temperature
        return Chat(
            model=request.model,
            max_tokens=min(max_tokens, self._longest_replies.get(request.model, max_tokens)),
            messages=_turns(request.messages),
            stream=True,
            system="\n\n".join(prompt for prompt in prompts if prompt.strip()),
            temperature=None if temperature is None else min(temperature, MAX_TEMPERATURE),
            top_p=options.top_p if temperature is None else None,
            top_k=options.top_k,
            stop_sequences=options.stop,
        )

    def _finish(self, end: Delta) -> Finished | None:
        """How the reply ended, if it says so. Raises for an end that is no success."""
        match end.stop_reason:
            case None:
                return None
            case "end_turn" | "stop_sequence":
                return Finished(FinishReason.STOP)
            case "max_tokens" | "model_context_window_exceeded":
                return Finished(FinishReason.LENGTH)
            case "refusal":
                details = end.stop_details
                why = (details and (details.explanation or details.category)) or "it does not say why"
                raise ContentFiltered(f"{self._upstream.label} refused: {self._upstream.shown(why)}")
            case reason:
                raise Unavailable(
                    f"{self._upstream.label} ended its reply with {self._upstream.shown(reason)!r}"
                )

    async def _fetch(self, path: str) -> Models:
        data = await self._upstream.fetch("GET", path, timeout_seconds=self._settings.list_timeout_seconds)
        return self._upstream.decode(data, MODELS)

    def _info(self, model: Model) -> ModelInfo:
        can = model.capabilities or Capabilities()
        vision = _supported(can.image_input)
        released = model.created_at if model.created_at and model.created_at.timestamp() > 0 else None
        return ModelInfo(
            name=model.id,
            source=self._upstream.origin,
            display_name=model.display_name or model.id,
            type=ModelType.VISION if vision else ModelType.CHAT,
            capabilities=ModelCapabilities(
                vision=vision,
                reasoning=_supported(can.thinking),
                max_context_tokens=model.max_input_tokens,
            ),
            metadata=ModelMetadata(updated_at=released),
            state=ModelState.READY,
        )


def _supported(capability: Supported | None) -> bool | None:
    return None if capability is None else capability.supported


def _deltas(delta: Delta) -> Iterator[TextDelta | ReasoningDelta]:
    if delta.thinking:
        yield ReasoningDelta(delta.thinking)
    if delta.text:
        yield TextDelta(delta.text)


# The statuses that errors have of themselves, whatever that of the answer they came in.
_STATUS_BY_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}

# An invalid_request_error is many things; only its text tells them apart.
_BY_TEXT: tuple[tuple[str, type[ProviderError]], ...] = (
    ("prompt is too long", ContextTooLong),
    ("exceed context limit", ContextTooLong),
    ("credit balance is too low", QuotaExceeded),
    ("reached your specified api usage limits", QuotaExceeded),
    ("required for long context requests", QuotaExceeded),
    ("not supported for this model", CapabilityMissing),
    ("does not support", CapabilityMissing),
)


class SamplingRefused(BadRequest):
    """The model takes no temperature, no top_p and no top_k, as all newer ones."""


_SAMPLING_REFUSED = re.compile(r"\b(temperature|top_p|top_k)\b.*(for this model|when thinking)")


def _classify(failure: HttpFailure) -> type[ProviderError]:
    said = (failure.text or "").lower()
    match failure.body:
        case {"error": {"type": str(kind)}}:
            failure = replace(failure, status=_STATUS_BY_TYPE.get(kind, failure.status))
    if _SAMPLING_REFUSED.search(said):
        return SamplingRefused
    return next((error for piece, error in _BY_TEXT if piece in said), error_class(failure))


def _unsampled(chat: Chat) -> Chat:
    return msgspec.structs.replace(chat, temperature=None, top_p=None, top_k=None)


def _turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Who speaks twice in a row has one turn; blank texts, which are refused, are left out."""
    spoken = (message for message in messages if message.role is not Role.SYSTEM and message.content.strip())
    return [
        Turn(role, [Text(message.content) for message in turn])
        for role, turn in groupby(spoken, key=lambda message: message.role)
    ]
