"""The schema's enums: those of the code below with descriptions added, and those that only clients see."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

import strawberry

from providers.base import FinishReason, ModelState, ModelType, Phase
from providers.registry import HealthStatus
from server.errors import ErrorCode

# A type of the schema takes its enums from here, so that they are published before they are used.
__all__ = [
    "Capability",
    "ErrorCode",
    "FinishReason",
    "GenerationStatus",
    "HealthStatus",
    "MessageStatus",
    "ModelState",
    "ModelType",
    "OnDisconnect",
    "Phase",
    "Role",
    "UsageSource",
]

EnumT = TypeVar("EnumT", bound=StrEnum)


def _publish(enum: type[EnumT], description: str, values: Mapping[EnumT, str]) -> None:
    """Make ``enum`` part of the schema. Raises KeyError for a member that ``values`` does not describe."""
    published = strawberry.enum(enum, description=description)
    for value in vars(published)["__strawberry_definition__"].values:
        value.description = values[enum(value.value)]


class Role(StrEnum):
    USER = "user"
    ASSISTANT = "assistant"


class MessageStatus(StrEnum):
    GENERATING = "generating"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class GenerationStatus(StrEnum):
    QUEUED = "queued"
    LOADING_MODEL = "loading_model"
    WAITING = "waiting"
    STREAMING = "streaming"
    RETRYING = "retrying"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class OnDisconnect(StrEnum):
    KEEP = "keep"
    STOP = "stop"


class UsageSource(StrEnum):
    PROVIDER = "provider"
    ESTIMATED = "estimated"
    MIXED = "mixed"


class Capability(StrEnum):
    VISION = "vision"
    STREAMING = "streaming"
    TOOLS = "tools"
    REASONING = "reasoning"


_publish(Role, "Who wrote a message.", {Role.USER: "A person.", Role.ASSISTANT: "A model."})

_publish(
    MessageStatus,
    "Whether a message is whole, and why not if it is not.",
    {
        MessageStatus.GENERATING: "The model is writing it; its content is what there is so far.",
        MessageStatus.COMPLETED: "It is whole.",
        MessageStatus.STOPPED: "Somebody stopped it; its content is what there was by then.",
        MessageStatus.FAILED: "Its model or provider failed; see its error. Text that came before is kept.",
        MessageStatus.INTERRUPTED: "The server ended before the reply did. Text that came before is kept.",
    },
)

_publish(
    GenerationStatus,
    "How far a generation is. The last four are final.",
    {
        GenerationStatus.QUEUED: "It waits for its turn.",
        GenerationStatus.LOADING_MODEL: "Its model is being loaded.",
        GenerationStatus.WAITING: "The model was asked and has not answered yet.",
        GenerationStatus.STREAMING: "The reply is coming.",
        GenerationStatus.RETRYING: "An attempt failed; the next one follows.",
        GenerationStatus.COMPLETED: "The model finished.",
        GenerationStatus.STOPPED: "Somebody stopped it.",
        GenerationStatus.FAILED: "Its model or provider failed.",
        GenerationStatus.INTERRUPTED: "The server that ran it ended first.",
    },
)

_publish(
    Phase,
    "What a generation is doing while no text comes.",
    {
        Phase.QUEUED: "It waits for its turn.",
        Phase.LOADING_MODEL: "Its model is being loaded.",
        Phase.WAITING: "The model was asked and has not answered yet.",
        Phase.RETRYING: "An attempt failed; the next one follows.",
    },
)

_publish(
    FinishReason,
    "Why a model finished.",
    {
        FinishReason.STOP: "It came to its end, or to one of the stop strings.",
        FinishReason.LENGTH: "It reached maxTokens, or the end of its context window.",
    },
)

_publish(
    UsageSource,
    "Who counted the tokens.",
    {
        UsageSource.PROVIDER: "The provider, by the model's own tokenizer.",
        UsageSource.ESTIMATED: "Parley, from the pieces that arrived.",
        UsageSource.MIXED: "The provider counted the prompt, Parley the reply.",
    },
)

_publish(
    Capability,
    "Something that a model can do.",
    {
        Capability.VISION: "Takes images.",
        Capability.STREAMING: "Answers piece by piece.",
        Capability.TOOLS: "Calls tools.",
        Capability.REASONING: "Thinks before it answers.",
    },
)

_publish(
    ModelType,
    "What a model takes.",
    {ModelType.CHAT: "Text.", ModelType.VISION: "Text and images."},
)

_publish(
    ModelState,
    "What it would take for a model to answer.",
    {
        ModelState.COLD: "It has to be loaded first; the first message to it does that.",
        ModelState.LOADING: "It is being loaded.",
        ModelState.READY: "It would answer at once.",
        ModelState.UNREACHABLE: "Its provider does not answer; the list that it is on may be old.",
        ModelState.FAILED: "Its last load failed.",
    },
)

_publish(
    OnDisconnect,
    "What happens to a reply that nobody reads any more.",
    {
        OnDisconnect.KEEP: "It goes on, and can be watched again.",
        OnDisconnect.STOP: "It is stopped when its last reader, on whichever server, unsubscribes, or has"
        " been gone for 10 seconds.",
    },
)

_publish(
    HealthStatus,
    "Whether a provider answers.",
    {
        HealthStatus.UP: "It answered when it was last asked.",
        HealthStatus.DOWN: "It failed when it was last asked.",
        HealthStatus.UNKNOWN: "It has not been asked yet.",
    },
)

_publish(
    ErrorCode,
    "What went wrong, for clients to branch on: extensions.code of an error, or ChatError.code.",
    {
        ErrorCode.GRAPHQL_PARSE_FAILED: "The document is not GraphQL, or larger than is allowed.",
        ErrorCode.GRAPHQL_VALIDATION_FAILED: "The document or its variables do not fit the schema, the"
        " transport or the limits on documents.",
        ErrorCode.BAD_INPUT: "A value is out of its range or makes no sense; the message names it.",
        ErrorCode.NOT_FOUND: "What an id means does not exist, or is not yours.",
        ErrorCode.CLIENT_KEY_REUSED: "The clientKey belongs to another message.",
        ErrorCode.CONFLICT: "Something else is under way, such as the reply that the message would follow.",
        ErrorCode.MODEL_NOT_FOUND: "No provider has this model.",
        ErrorCode.MODEL_LOAD_FAILED: "The model's files cannot be used.",
        ErrorCode.OUT_OF_MEMORY: "The model does not fit into the memory that is free.",
        ErrorCode.PROVIDER_UNAVAILABLE: "The provider does not answer, or not as its protocol says.",
        ErrorCode.BAD_CREDENTIALS: "The provider refused the key that is configured.",
        ErrorCode.QUOTA_EXCEEDED: "What the provider allows is used up.",
        ErrorCode.OVERLOADED: "Too busy now; later it may work.",
        ErrorCode.CAPABILITY_MISSING: "The model cannot do what was asked of it.",
        ErrorCode.CONTEXT_TOO_LONG: "The conversation exceeds the model's context window.",
        ErrorCode.CONTENT_FILTERED: "The provider's content filter refused.",
        ErrorCode.REJECTED: "The provider refused the request.",
        ErrorCode.STREAM_BROKEN: "The reply broke off; the text before it is kept.",
        ErrorCode.INTERRUPTED: "The server ended before the reply did; the text before it is kept.",
        ErrorCode.DATABASE_UNAVAILABLE: "The database cannot be reached.",
        ErrorCode.INTERNAL: "A fault of the server's; its log has more, under the id in the message.",
    },
)
