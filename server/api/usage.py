"""What a reply cost."""

from typing import Self

import strawberry

import db.usage
from db.conversations import Message
from server.api.enums import UsageSource
from server.api.fields import resolver


@strawberry.type(description="Tokens and times of the attempt that answered.")
class Usage:
    prompt_tokens: int | None = strawberry.field(description="Tokens that the model was given.")
    completion_tokens: int | None = strawberry.field(description="Tokens that the model produced.")
    source: UsageSource = strawberry.field(description="Who counted them.")
    first_token_ms: float | None = strawberry.field(
        description="Milliseconds from the start of the attempt to its first token."
    )
    duration_ms: float | None = strawberry.field(description="Milliseconds that the attempt took in all.")

    @resolver("Both together, where both are known.")
    def total_tokens(self) -> int | None:
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens

    @resolver("How fast the tokens came, from the first one on.")
    def tokens_per_second(self) -> float | None:
        if not self.completion_tokens or self.first_token_ms is None or self.duration_ms is None:
            return None
        seconds = (self.duration_ms - self.first_token_ms) / 1000
        return (self.completion_tokens - 1) / seconds if seconds > 0 else None

    @classmethod
    def of_attempt(cls, spent: db.usage.Usage) -> Self:
        return cls(
            prompt_tokens=spent.prompt_tokens,
            completion_tokens=spent.completion_tokens,
            source=UsageSource(spent.source),
            first_token_ms=spent.first_token_ms,
            duration_ms=spent.duration_ms,
        )

    @classmethod
    def of(cls, message: Message) -> Self | None:
        """None for a message that no model wrote, or has not finished."""
        if message.usage_source is None:
            return None
        return cls(
            prompt_tokens=message.prompt_tokens,
            completion_tokens=message.completion_tokens,
            source=UsageSource(message.usage_source),
            first_token_ms=message.first_token_ms,
            duration_ms=message.duration_ms,
        )
