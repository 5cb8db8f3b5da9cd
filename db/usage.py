"""What each attempt at a reply cost, kept also when the conversation is deleted."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db.database import Connection


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt. ``source`` says who counted: provider, estimated, or mixed."""

    prompt_tokens: int | None
    completion_tokens: int | None
    source: str
    first_token_ms: float | None
    duration_ms: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """One model's try at a reply. ``outcome`` is completed, stopped, failed or interrupted."""

    number: int
    provider: str
    model: str
    started_at: datetime
    first_token_at: datetime | None
    finished_at: datetime
    outcome: str
    error_code: str | None
    usage: Usage


async def record(connection: Connection, generation_id: UUID, viewer_id: str, attempt: Attempt) -> None:
    await connection.execute(
        """
        INSERT INTO generation_attempts
            (generation_id, number, provider, model, started_at, first_token_at, finished_at, outcome,
             error_code)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        """,
        generation_id,
        attempt.number,
        attempt.provider,
        attempt.model,
        attempt.started_at,
        attempt.first_token_at,
        attempt.finished_at,
        attempt.outcome,
        attempt.error_code,
    )
    await connection.execute(
        """
        INSERT INTO model_usage_stats
            (generation_id, attempt, viewer_id, provider, model, outcome, prompt_tokens, completion_tokens,
             usage_source, first_token_ms, duration_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
        """,
        generation_id,
        attempt.number,
        viewer_id,
        attempt.provider,
        attempt.model,
        attempt.outcome,
        attempt.usage.prompt_tokens,
        attempt.usage.completion_tokens,
        attempt.usage.source,
        attempt.usage.first_token_ms,
        attempt.usage.duration_ms,
    )
