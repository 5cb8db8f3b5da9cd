"""What goes over the wire to and from Google's Gemini API, as far as it is used."""

from contextlib import suppress
from typing import Any

import msgspec


class Text(msgspec.Struct, frozen=True):
    text: str


class Turn(msgspec.Struct, omit_defaults=True, frozen=True):
    """A system instruction is one without a role."""

    parts: list[Text]
    role: str = ""


class Thinking(msgspec.Struct, rename="camel", frozen=True):
    include_thoughts: bool


class Options(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_output_tokens: int | None = None
    seed: int | None = None
    stop_sequences: tuple[str, ...] = ()
    thinking_config: Thinking | None = None


class Chat(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    contents: list[Turn]
    generation_config: Options
    system_instruction: Turn | None = None


class Part(msgspec.Struct, frozen=True):
    text: str | None = None
    thought: bool | None = None


class Content(msgspec.Struct, frozen=True):
    parts: list[Part] | None = None


class Candidate(msgspec.Struct, rename="camel", frozen=True):
    content: Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None


class PromptFeedback(msgspec.Struct, rename="camel", frozen=True):
    block_reason: str | None = None
    block_reason_message: str | None = None


class Usage(msgspec.Struct, rename="camel", frozen=True):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None

    @property
    def completion_tokens(self) -> int | None:
        """Thoughts are generated tokens too, but not part of ``candidatesTokenCount``."""
        parts = [
            count for count in (self.candidates_token_count, self.thoughts_token_count) if count is not None
        ]
        return sum(parts) if parts else None


class Chunk(msgspec.Struct, rename="camel", frozen=True):
    candidates: list[Candidate] | None = None
    prompt_feedback: PromptFeedback | None = None
    usage_metadata: Usage | None = None


class Violation(msgspec.Struct, rename="camel", frozen=True):
    quota_id: str = ""


class Detail(msgspec.Struct, rename="camel", frozen=True):
    """Any of google.rpc's error details: ErrorInfo, RetryInfo, QuotaFailure."""

    reason: str = ""
    retry_delay: str = ""
    violations: list[Violation] = []


class Status(msgspec.Struct, frozen=True):
    """``code`` is the HTTP status, also inside of an answer that had begun with another one."""

    code: int = 500
    status: str = ""
    details: list[Detail] = []


class Failure(msgspec.Struct, frozen=True):
    error: Status


def status_of(body: object) -> Status:
    """What an error in decoded JSON says of itself, in whatever form it comes; the default if it is none."""
    match body:
        case [dict() as inner]:
            return status_of(inner)
        case _:
            with suppress(msgspec.ValidationError):
                return msgspec.convert(body, Failure).error
    return Status()


class Model(msgspec.Struct, rename="camel", frozen=True):
    name: str
    display_name: str | None = None
    description: str | None = None
    input_token_limit: int | None = None
    output_token_limit: int | None = None
    supported_generation_methods: list[str] = []
    thinking: bool | None = None
    max_temperature: float | None = None


class Models(msgspec.Struct, rename="camel", frozen=True):
    models: list[Model] = []
    next_page_token: str = ""


ANYTHING = msgspec.json.Decoder[Any](Any)
CHUNK = msgspec.json.Decoder(Chunk)
MODELS = msgspec.json.Decoder(Models)
