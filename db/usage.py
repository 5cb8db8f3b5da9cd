"""What each attempt at a reply cost, kept also when the conversation is deleted."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db.database import Connection, Database, Record


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


async def attempts(
    database: Database, viewer_id: str, generation_ids: Sequence[UUID]
) -> list[tuple[UUID, Attempt]]:
    """Those of each generation beside its id, in their order."""
    rows = await database.fetch(
        """
        SELECT a.generation_id, a.number, a.provider, a.model, a.started_at, a.first_token_at, a.finished_at,
               a.outcome, a.error_code, s.prompt_tokens, s.completion_tokens, s.usage_source,
               s.first_token_ms, s.duration_ms
        FROM generation_attempts a
        JOIN model_usage_stats s ON s.generation_id = a.generation_id AND s.attempt = a.number
        WHERE a.generation_id = ANY($2::uuid[]) AND s.viewer_id = $1
        ORDER BY a.generation_id, a.number
        """,
        viewer_id,
        generation_ids,
    )
    return [(row["generation_id"], _attempt(row)) for row in rows]


def _attempt(row: Record) -> Attempt:
    return Attempt(
        number=row["number"],
        provider=row["provider"],
        model=row["model"],
        started_at=row["started_at"],
        first_token_at=row["first_token_at"],
        finished_at=row["finished_at"],
        outcome=row["outcome"],
        error_code=row["error_code"],
        usage=Usage(
            row["prompt_tokens"],
            row["completion_tokens"],
            row["usage_source"],
            row["first_token_ms"],
            row["duration_ms"],
        ),
    )


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
