"""The one shape of every model source: what is asked of it, and what it answers."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol, runtime_checkable


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How to sample. ``None`` leaves the choice to the model's own configuration.

    ``temperature`` 0 is greedy decoding. ``max_tokens`` counts generated tokens. A reply ends before
    the first occurrence of any ``stop`` string, which is not part of its text.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One reply to produce. ``model`` is the provider's own name for it, without prefix; ``messages``
    run from the oldest to the newest, a system prompt first."""

    model: str
    messages: tuple[ChatMessage, ...]
    options: GenerationOptions = GenerationOptions()


class Phase(StrEnum):
    """What a generation is doing before and between its tokens."""

    QUEUED = "queued"
    LOADING_MODEL = "loading_model"
    WAITING = "waiting"
    RETRYING = "retrying"


class FinishReason(StrEnum):
    """STOP: the model ended by itself or met a stop string. LENGTH: max_tokens or the window was full."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """``progress`` is a share from 0 to 1 where one is known."""

    phase: Phase
    detail: str | None = None
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Tokens as the provider counts them; reports replace each other. ``None``: it did not say."""

    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The terminal marker. A stream that ends without it has failed (StreamBroken)."""

    reason: FinishReason


ProviderEvent = TextDelta | ReasoningDelta | PhaseChanged | UsageReport | Finished


class ModelType(StrEnum):
    CHAT = "chat"
    VISION = "vision"


class ModelState(StrEnum):
    """COLD: needs loading first. READY: would answer at once. FAILED: its last load failed."""

    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    UNREACHABLE = "unreachable"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelCapabilities:
    """``None`` means that the provider does not say, not that the model cannot."""

    streaming: bool = True
    vision: bool | None = None
    tools: bool | None = None
    reasoning: bool | None = None
    max_context_tokens: int | None = None
    languages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens."""

    input: float
    output: float


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """``size_bytes`` is what the weights take on disk; ``parameters`` their number; ``price`` what using it
    costs."""

    size_bytes: int | None = None
    parameters: int | None = None
    architecture: str | None = None
    quantization: str | None = None
    license: str | None = None
    updated_at: datetime | None = None
    price: Price | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """``memory_bytes`` is what it takes, ``leases`` how many use it now, ``loaded_at`` since when it has been
    there; each where the provider knows."""

    name: str
    memory_bytes: int | None = None
    leases: int | None = None
    loaded_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model as its provider lists it. ``name`` is without prefix; ``source`` is the folder, host or
    hub that it comes from. ``residency`` is there while the model is in a memory that the provider sees."""

    name: str
    source: str
    display_name: str
    type: ModelType = ModelType.CHAT
    description: str | None = None
    capabilities: ModelCapabilities = field(default_factory=ModelCapabilities)
    metadata: ModelMetadata = field(default_factory=ModelMetadata)
    state: ModelState = ModelState.COLD
    residency: LoadedModel | None = None


class Provider(Protocol):
    """A source of models.

    Every method raises only ``providers.errors.ProviderError`` (and ``CancelledError``).
    """

    @property
    def name(self) -> str: ...

    def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Produce one reply. The last event of a successful one is ``Finished``.

        Closing the generator, or cancelling the task that iterates it, ends the work upstream without
        waiting for upstream to confirm.
        """
        ...

    async def models(self) -> list[ModelInfo]:
        """Every chat model that can be asked for now."""
        ...

    async def check(self) -> None:
        """Return if requests would be answered; costs nothing upstream."""
        ...

    async def aclose(self) -> None:
        """End everything this provider started. Streams still open end with ``Unavailable``, or with
        ``StreamBroken`` if they had begun."""
        ...


@runtime_checkable
class ModelHost(Protocol):
    """A provider that holds models in memory. Raises only ``ProviderError``."""

    def load(self, model: str) -> AsyncGenerator[PhaseChanged, None]:
        """Have the model ready to answer, and say what that is at. Closed early, the load may be given up."""
        ...

    async def unload(self, model: str) -> None:
        """Take the model out of memory; one that is not there stays so. Ends no reply: raises InUse, or
        leaves the unloading to the end of the last one."""
        ...

    async def loaded(self) -> list[LoadedModel]: ...


@runtime_checkable
class ModelFinder(Protocol):
    """A provider with rules of its own for what a name means. Without it a name means the listed model of
    exactly that name."""

    def find(self, name: str, listed: Sequence[ModelInfo]) -> ModelInfo | None:
        """The model meant by ``name`` (without prefix), given the newest list; no I/O.

        Returns ``None``, or raises ``ModelNotFound`` where it can say what would be right.
        """
        ...
