"""What happens in a generation, as its log keeps it and its readers see it."""

from typing import Literal
from uuid import UUID

import msgspec

from providers.base import FinishReason, Phase
from server.errors import ErrorCode


class Event(msgspec.Struct, frozen=True, tag_field="kind"):
    """The base of every event; ``kind`` tells them apart in the stored JSON."""


class Started(Event, frozen=True, tag="started"):
    """Always number 1."""

    conversation_id: UUID
    user_message_id: UUID
    message_id: UUID
    model: str


class PhaseChanged(Event, frozen=True, tag="phase"):
    phase: Phase
    detail: str | None = None
    progress: float | None = None


class ModelSwitched(Event, frozen=True, tag="switched"):
    """``discard_text``: what was said so far is void."""

    from_model: str
    to_model: str
    reason: str
    discard_text: bool


class _Delta(Event, frozen=True):
    """A piece of what the model says; a reader joins those of one kind."""

    text: str


class ReasoningDelta(_Delta, frozen=True, tag="reasoning"):
    pass


class TextDelta(_Delta, frozen=True, tag="text"):
    pass


class Completed(Event, frozen=True, tag="completed"):
    finish_reason: FinishReason


class Stopped(Event, frozen=True, tag="stopped"):
    pass


class Failed(Event, frozen=True, tag="failed"):
    """``outcome`` is interrupted when the server, not the model, ended the reply."""

    outcome: Literal["failed", "interrupted"]
    code: ErrorCode
    message: str
    retryable: bool


Delta = ReasoningDelta | TextDelta
Terminal = Completed | Stopped | Failed
StreamEvent = (
    Started | PhaseChanged | ModelSwitched | ReasoningDelta | TextDelta | Completed | Stopped | Failed
)


class LoggedEvent(msgspec.Struct, frozen=True):
    """One event as a reader gets it: it covers the log's numbers ``from_seq`` to ``seq``, which differ
    where neighbouring deltas were merged."""

    generation_id: UUID
    from_seq: int
    seq: int
    event: StreamEvent


def clean(text: str) -> str:
    """``text`` as Postgres and JSON can keep it: without NUL, lone surrogates replaced by U+FFFD."""
    if text.isascii():
        return text.replace("\0", "")
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
