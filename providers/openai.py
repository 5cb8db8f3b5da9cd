"""Any server that speaks OpenAI's chat completions: OpenAI, the Hugging Face router, vLLM, llama.cpp, ..."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from providers.base import (
    ChatRequest,
    Finished,
    FinishReason,
    ModelInfo,
    Phase,
    PhaseChanged,
    ProviderEvent,
    ReasoningDelta,
    TextDelta,
    UsageReport,
)
from providers.errors import BadRequest, ContentFiltered, ModelNotFound, ProviderError, Unavailable
from providers.http import HttpFailure, Upstream, error_text
from providers.openai_errors import NoSuchAddress, classify, refused_fields, status_of
from providers.openai_models import live_hosts, model_info
from providers.openai_wire import (
    ANYTHING,
    CHUNK,
    MODELS,
    Chat,
    Choice,
    Chunk,
    Model,
    StreamOptions,
    Turn,
    Usage,
)
from providers.reply import ReplyLimits, complete_reply
from providers.sse import ServerSentEvent, read_events

HF_ROUTER_MODEL = "zai-org/GLM-4.7-Flash:novita"

USAGE_SECONDS = 1.0
_DONE = "[DONE]"
_LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
_POLICIES = ("fastest", "cheapest", "preferred")

_log = logging.getLogger("parley.providers")


@dataclass(frozen=True, slots=True)
class Dialect:
    """In what servers differ that all speak this protocol.

    ``title`` names one to people, ``base_url`` is a vendor's own. ``not_chat`` finds the names of listed
    models that do not chat. ``names_hosts``: who is to answer may stand behind a model's name, after a colon.
    ``dates_models``: a list tells when a model was made, and not when the server was started.
    """

    title: str
    base_url: str = ""
    limit_field: str = "max_tokens"
    takes_top_k: bool = True
    not_chat: re.Pattern[str] | None = None
    names_hosts: bool = False
    dates_models: bool = False


HF_ROUTER = Dialect(
    "the Hugging Face router", "https://router.huggingface.co/v1", names_hosts=True, dates_models=True
)
# OpenAI's list does not say what its models are for. Those with "codex", "pro" or "deep-research" in their
# names chat, but in its Responses API alone.
OPENAI = Dialect(
    "OpenAI",
    "https://api.openai.com/v1",
    limit_field="max_completion_tokens",
    takes_top_k=False,
    not_chat=re.compile(
        r"^(text-|whisper|tts-|dall-e|gpt-image|chatgpt-image|sora|omni-moderation|babbage|davinci|computer-use)"
        r"|-(tts|transcribe|realtime|audio|instruct|image|codex|pro|deep-research)(-|$)|^codex-"
    ),
    dates_models=True,
)


@dataclass(frozen=True, slots=True)
class OpenAISettings:
    """``base_url`` ends where ``/chat/completions`` begins.

    ``api_key`` empty: none is sent. ``known_models`` are listed also where the server does not. A list is
    given ``list_timeout_seconds``: less than the registry gives it.
    """

    name: str
    base_url: str
    dialect: Dialect
    api_key: str = field(default="", repr=False)
    known_models: tuple[str, ...] = ()
    connect_timeout_seconds: float = 5.0
    first_token_timeout_seconds: float = 300.0
    stream_timeout_seconds: float = 300.0
    list_timeout_seconds: float = 1.8


class OpenAI:
    def __init__(self, settings: OpenAISettings) -> None:
        self._settings = settings
        self._limits = ReplyLimits(settings.first_token_timeout_seconds, settings.stream_timeout_seconds)
        self._upstream = Upstream(
            settings.base_url,
            name=settings.dialect.title,
            connect_timeout_seconds=settings.connect_timeout_seconds,
            classify=classify,
            headers={"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {},
        )
        self._listed: dict[str, Model] = {}
        self._refused: dict[str, frozenset[str]] = {}  # by model: request fields that it does not take

    @property
    def name(self) -> str:
        return self._settings.name

    def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        return complete_reply(self._reply(request), self._limits, self._upstream.label)

    async def models(self) -> list[ModelInfo]:
        """Every model that can chat, as far as the list tells, and the known ones."""
        self._listed = {model.id: model for model in await self._list()}
        listed = (self._info(model) for model in self._listed.values())
        return [info for info in listed if info is not None]

    def find(self, name: str, listed: Sequence[ModelInfo]) -> ModelInfo | None:
        """A name as it is listed. Where hosts can be named, one of the model's or a policy may follow."""
        by_name = {info.name: info for info in listed}
        base, _, host_name = name.rpartition(":")
        if name in by_name or not self._settings.dialect.names_hosts or base not in by_name:
            return by_name.get(name)
        model = self._listed.get(base)
        if model is None or host_name in _POLICIES:
            return replace(by_name[base], name=name, display_name=name)
        hosts = {host.provider: host for host in live_hosts(model)}
        if host_name not in hosts:
            raise ModelNotFound(f"{host_name!r} does not serve {base}: {', '.join(hosts) or 'nobody'} does")
        return self._info(msgspec.structs.replace(model, id=name, providers=[hosts[host_name]]))

    async def check(self) -> None:
        await self._list()

    async def aclose(self) -> None:
        await self._upstream.aclose()

    async def _reply(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        """A request field that the server does not take is left out, then and from then on. None of them
        changes what a reply is, and the limit of its length, which has two names, is always sent."""
        yield PhaseChanged(Phase.WAITING)
        refused = self._refused.get(request.model, frozenset())
        while True:
            chat = self._chat(request, refused)
            began = False
            try:
                async with aclosing(self._read(chat)) as events:
                    async for event in events:
                        began = True
                        yield event
                return
            except BadRequest as error:
                more = refused_fields(error.message) & _sent_fields(chat)
                if began or not more or not set(_LIMIT_FIELDS) - refused - more:
                    raise
            refused |= more
            self._refused[request.model] = refused
            _log.info("%s does not take %s for %s", self._upstream.label, ", ".join(more), request.model)

    async def _read(self, chat: Chat) -> AsyncGenerator[ProviderEvent, None]:
        usage, reason = None, None
        began = False
        body = self._upstream.stream("POST", "/chat/completions", msgspec.json.encode(chat))
        async with aclosing(read_events(body, self._upstream.label)) as events:
            async for sent in events:
                if sent.data == _DONE:
                    reason = "stop" if began else None
                    break
                chunk = self._chunk(sent.data)
                usage = chunk.usage or usage
                for choice in chunk.choices or ():
                    for delta in _deltas(choice):
                        began = True
                        yield delta
                    reason = choice.finish_reason
                if reason:
                    usage = await self._late_usage(events) or usage
                    break
            if reason:
                if usage:
                    yield UsageReport(usage.prompt_tokens, usage.completion_tokens)
                yield self._finish(reason)
                async for _ in events:
                    pass

    async def _late_usage(self, events: AsyncGenerator[ServerSentEvent, None]) -> Usage | None:
        """What comes after the text. The reply is complete: nothing that goes wrong from here on counts."""
        usage = None
        seconds = min(USAGE_SECONDS, self._settings.stream_timeout_seconds / 2)
        with suppress(StopAsyncIteration, TimeoutError, ProviderError):
            async with asyncio.timeout(seconds):
                while (sent := await anext(events)).data != _DONE:
                    usage = self._upstream.decode(sent.data, CHUNK).usage or usage
        return usage

    def _chunk(self, data: str) -> Chunk:
        """Raises for an error in the place of a chunk."""
        if '"error"' in data:
            try:
                said = self._upstream.decode(data, ANYTHING)
            except Unavailable:
                if (unescaped := _UNESCAPED_ERROR.match(data)) is None:
                    raise
                said = {"error": unescaped[1]}
            if text := error_text(said):
                raise self._upstream.error(HttpFailure(status_of(said), text, body=said))
        return self._upstream.decode(data, CHUNK)

    def _finish(self, reason: str) -> Finished:
        """How the reply ended. Raises for an end that is no success."""
        match reason:
            case "stop" | "eos" | "eos_token" | "end_turn" | "stop_sequence" | "tool_calls" | "function_call":
                return Finished(FinishReason.STOP)
            case "length" | "max_tokens" | "model_length":
                return Finished(FinishReason.LENGTH)
            case "content_filter":
                raise ContentFiltered(f"{self._upstream.label} withheld the rest of the reply: {reason}")
            case _:
                raise Unavailable(
                    f"{self._upstream.label} ended its reply with {self._upstream.shown(reason)!r}"
                )

    async def _list(self) -> list[Model]:
        """Raises NoSuchAddress where there is no list and nothing is known without it."""
        settings = self._settings
        listed: list[Model] = []
        try:
            data = await self._upstream.fetch("GET", "/models", timeout_seconds=settings.list_timeout_seconds)
            listed = self._upstream.decode(data, MODELS).data or []
        except NoSuchAddress:
            if not settings.known_models:
                raise
        not_chat = settings.dialect.not_chat
        names = {model.id for model in listed}
        return [model for model in listed if not_chat is None or not not_chat.search(model.id)] + [
            Model(name) for name in settings.known_models if name not in names
        ]

    def _info(self, model: Model) -> ModelInfo | None:
        return model_info(model, source=self._upstream.origin, dated=self._settings.dialect.dates_models)

    def _chat(self, request: ChatRequest, refused: frozenset[str]) -> Chat:
        options = request.options
        dialect = self._settings.dialect
        limit_field = next(name for name in (dialect.limit_field, *_LIMIT_FIELDS) if name not in refused)
        optional: dict[str, Any] = {
            "stream_options": StreamOptions(),
            limit_field: options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k if dialect.takes_top_k else None,
            "seed": options.seed,
        }
        return Chat(
            model=request.model,
            messages=[Turn(message.role, message.content) for message in request.messages],
            stream=True,
            stop=options.stop,
            **{name: value for name, value in optional.items() if name not in refused},
        )


# transformers serve does not escape the text.
_UNESCAPED_ERROR = re.compile(r'\{"error": "(.*?)(?:"\})?$', re.DOTALL)


def _sent_fields(chat: Chat) -> set[str]:
    return {name for name, value in msgspec.structs.asdict(chat).items() if value is not None}


def _deltas(choice: Choice) -> Iterator[ProviderEvent]:
    delta = choice.delta or choice.message
    if delta is None:
        return
    if reasoning := delta.reasoning_content or delta.reasoning:
        yield ReasoningDelta(reasoning)
    if text := delta.content or delta.refusal:
        yield TextDelta(text)
