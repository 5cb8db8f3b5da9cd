"""The rows of each generation's log: appended behind a fence, read from any number, closed exactly once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from db import usage
from db.bell import Channel, ring
from db.database import Connection, Database
from db.usage import Attempt


class NoSuchGeneration(LookupError):
    """There is none, or it was deleted."""


@dataclass(frozen=True, slots=True)
class LogRow:
    """``event`` is JSON; its ``kind`` is text or reasoning for what has a ``text``."""

    generation_id: UUID
    seq: int
    event: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How a generation ended: the rows not yet stored, the terminal one last, the attempt that decided, those
    that failed before it, and what else the reply's message keeps."""

    generation_id: UUID
    rows: Sequence[LogRow]
    attempt: Attempt
    earlier: Sequence[Attempt] = ()
    finish_reason: str | None = None
    error_message: str | None = None
    error_retryable: bool | None = None


def joined_text(generation_id: str) -> str:
    """A query for the content and the reasoning in one generation's log, so that what is shown of a running
    reply and what is kept of it are the same. ``generation_id`` is SQL."""
    return f"""
        SELECT string_agg(text, '' ORDER BY seq) FILTER (WHERE kind = 'text') AS content,
               string_agg(text, '' ORDER BY seq) FILTER (WHERE kind = 'reasoning') AS reasoning
        FROM (SELECT seq, event->>'kind' AS kind, event->>'text' AS text
              FROM generation_events WHERE generation_id = {generation_id}) e
    """


async def insert(connection: Connection, rows: Sequence[LogRow]) -> None:
    await connection.execute(
        """
        INSERT INTO generation_events (generation_id, seq, event)
        SELECT generation_id, seq, event::jsonb
        FROM unnest($1::uuid[], $2::int[], $3::text[]) AS new(generation_id, seq, event)
        ON CONFLICT DO NOTHING
        """,
        [row.generation_id for row in rows],
        [row.seq for row in rows],
        [row.event for row in rows],
    )


async def append(
    database: Database, owner: UUID, rows: Sequence[LogRow], statuses: Mapping[UUID, str]
) -> set[UUID]:
    """Store the rows, and the new statuses, of those generations that still run and are this owner's, in
    one commit and with one ring of the bell, and return which these were. Rows that are there already stay
    as they are, so that a commit whose fate is unknown can be repeated.

    The lock in ``mine`` is the fence: whoever closes or claims a generation comes before it or after it.
    """
    accepted = await database.fetch(
        """
        WITH mine AS (
            SELECT id FROM generations
            WHERE id = ANY($2::uuid[]) AND owner = $1 AND finished_at IS NULL
            ORDER BY id FOR NO KEY UPDATE
        ), stored AS (
            INSERT INTO generation_events (generation_id, seq, event)
            SELECT new.generation_id, new.seq, new.event::jsonb
            FROM unnest($2::uuid[], $3::int[], $4::text[]) AS new(generation_id, seq, event)
            JOIN mine ON mine.id = new.generation_id
            ON CONFLICT DO NOTHING
        ), told AS (
            UPDATE generations g SET status = new.status
            FROM unnest($5::uuid[], $6::text[]) AS new(id, status) JOIN mine USING (id)
            WHERE g.id = new.id
        )
        SELECT id, (SELECT pg_notify($7, '')) FROM mine
        """,
        owner,
        [row.generation_id for row in rows],
        [row.seq for row in rows],
        [row.event for row in rows],
        list(statuses),
        list(statuses.values()),
        Channel.LOG,
    )
    return {row["id"] for row in accepted}


async def events(database: Database, generation_id: UUID, after: int, limit: int) -> list[LogRow]:
    """Up to ``limit`` rows of the log that follow number ``after``."""
    rows = await database.fetch(
        """
        SELECT generation_id, seq, event::text AS event FROM generation_events
        WHERE generation_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
        """,
        generation_id,
        after,
        limit,
    )
    return [LogRow(**dict(row)) for row in rows]


async def events_of_many(database: Database, after: Mapping[UUID, int], limit: int) -> list[LogRow]:
    """Of each generation up to ``limit`` rows that follow the number beside it, together and in order."""
    rows = await database.fetch(
        """
        SELECT e.generation_id, e.seq, e.event
        FROM unnest($1::uuid[], $2::int[]) AS wanted(id, after)
        CROSS JOIN LATERAL (
            SELECT generation_id, seq, event::text AS event FROM generation_events
            WHERE generation_id = wanted.id AND seq > wanted.after ORDER BY seq LIMIT $3
        ) e
        ORDER BY e.generation_id, e.seq
        """,
        list(after),
        list(after.values()),
        limit,
    )
    return [LogRow(**dict(row)) for row in rows]


async def last_row(database: Database, generation_id: UUID) -> tuple[LogRow, bool]:
    """The last row so far, and whether the generation has ended with it. Raises NoSuchGeneration."""
    row = await database.fetchrow(
        """
        SELECT last.generation_id, last.seq, last.event, g.finished_at IS NOT NULL AS is_ended
        FROM generations g
        CROSS JOIN LATERAL (
            SELECT generation_id, seq, event::text AS event FROM generation_events WHERE generation_id = g.id
            ORDER BY seq DESC LIMIT 1
        ) last
        WHERE g.id = $1
        """,
        generation_id,
    )
    if row is None:
        raise NoSuchGeneration(generation_id)
    return LogRow(generation_id, row["seq"], row["event"]), row["is_ended"]


async def finish(database: Database, owner: UUID, ending: Ending) -> bool:
    """Close a generation of this owner's: log, message and usage in one commit.

    False: it was not this owner's to close any more. A repetition after a commit whose fate is unknown is
    recognised by the terminal row and returns True.
    """
    async with database.transaction() as connection:
        closed = await connection.fetchrow(
            """
            UPDATE generations SET status = $3, finished_at = now()
            WHERE id = $1 AND owner = $2 AND finished_at IS NULL
            RETURNING viewer_id, conversation_id, message_id
            """,
            ending.generation_id,
            owner,
            ending.attempt.outcome,
        )
        if closed is None:
            return await _is_stored(connection, ending.rows[-1])
        await insert(connection, ending.rows)
        await _finish_message(connection, closed["message_id"], ending)
        await _touch(connection, closed["conversation_id"])
        for attempt in (*ending.earlier, ending.attempt):
            await usage.record(connection, ending.generation_id, closed["viewer_id"], attempt)
        await ring(connection, Channel.LOG, Channel.CONVERSATIONS)
    return True


async def _is_stored(connection: Connection, row: LogRow) -> bool:
    return bool(
        await connection.fetchval(
            "SELECT event = $3::text::jsonb FROM generation_events WHERE generation_id = $1 AND seq = $2",
            row.generation_id,
            row.seq,
            row.event,
        )
    )


async def _finish_message(connection: Connection, message_id: UUID, ending: Ending) -> None:
    """The message's text is the log's, joined: what was shown is what is kept."""
    spent = ending.attempt.usage
    await connection.execute(
        f"""
        UPDATE messages m
        SET content = coalesce(log.content, ''), reasoning = log.reasoning, status = $3, finish_reason = $4,
            error_code = $5, error_message = $6, error_retryable = $7, prompt_tokens = $8,
            completion_tokens = $9, usage_source = $10, first_token_ms = $11, duration_ms = $12
        FROM ({joined_text("$2")}) log
        WHERE m.id = $1
        """,
        message_id,
        ending.generation_id,
        ending.attempt.outcome,
        ending.finish_reason,
        ending.attempt.error_code,
        ending.error_message,
        ending.error_retryable,
        spent.prompt_tokens,
        spent.completion_tokens,
        spent.source,
        spent.first_token_ms,
        spent.duration_ms,
    )


async def _touch(connection: Connection, conversation_id: UUID) -> None:
    await connection.execute("UPDATE conversations SET updated_at = now() WHERE id = $1", conversation_id)


async def purge(database: Database, *, ended_seconds_ago: float, generations: int) -> int:
    """Delete what lies between the first and the last row of up to that many generations which ended so long
    ago, and return of how many; 0 also while another process does it."""
    async with database.transaction() as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _PURGE_LOCK):
            return 0
        purged = await connection.fetch(
            """
            WITH due AS (
                SELECT id FROM generations
                WHERE finished_at < now() - make_interval(secs => $1) AND purged_at IS NULL
                ORDER BY finished_at LIMIT $2
            ), deleted AS (
                DELETE FROM generation_events e USING due
                WHERE e.generation_id = due.id AND e.seq > 1
                  AND e.seq < (SELECT max(seq) FROM generation_events last WHERE last.generation_id = due.id)
            ), forgotten AS (
                DELETE FROM generation_readers r USING due WHERE r.generation_id = due.id
            )
            UPDATE generations g SET purged_at = now() FROM due WHERE g.id = due.id
            RETURNING g.id
            """,
            ended_seconds_ago,
            generations,
        )
    return len(purged)


_PURGE_LOCK = 0x7061726C65790001  # "parley" and the first of its jobs; an application's own choice
