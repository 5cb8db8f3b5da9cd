"""Generations: begun with their messages, leased to the process that writes them, claimed when it is gone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from db import generation_log
from db.database import Conflict, Connection, Database
from db.generation_log import LogRow


@dataclass(frozen=True, slots=True)
class Generation:
    """One reply being produced, or ended when ``finished_at`` is set."""

    id: UUID
    viewer_id: str
    conversation_id: UUID
    user_message_id: UUID
    message_id: UUID
    model: str
    provider: str
    status: str
    owner: UUID
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """Everything that one send stores. ``parent_id`` None hangs the message on the conversation's head;
    ``title`` is for a conversation that begins here, or has none yet."""

    id: UUID
    viewer_id: str
    conversation_id: UUID
    user_message_id: UUID
    message_id: UUID
    parent_id: UUID | None
    begins_conversation: bool
    title: str
    system_prompt: str | None
    text: str
    model: str
    provider: str
    options: dict[str, Any]
    started_event: str
    owner: UUID
    lease_seconds: float


_GENERATION = """
    g.id, g.viewer_id, g.conversation_id, g.user_message_id, g.message_id, g.model, g.provider, g.status,
    g.owner, g.started_at, g.finished_at
"""


async def begin(database: Database, new: NewGeneration) -> Generation:
    """Store the user's message, the reply's empty one and the generation, all or nothing.

    Raises Conflict while the message to hang on is still being written, LookupError when the conversation
    or the parent is not there.
    """
    async with database.transaction() as connection:
        parent_id = None
        if new.begins_conversation:
            await connection.execute(
                "INSERT INTO conversations (id, viewer_id, title, system_prompt) VALUES ($1, $2, $3, $4)",
                new.conversation_id,
                new.viewer_id,
                new.title,
                new.system_prompt,
            )
        else:
            parent_id = await _hang_on(connection, new)
        await _insert_messages(connection, new, parent_id)
        row = await connection.fetchrow(
            f"""
            INSERT INTO generations AS g (id, viewer_id, conversation_id, user_message_id, message_id, model,
                                          provider, options, status, owner, lease_until)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'queued', $9, now() + make_interval(secs => $10))
            RETURNING {_GENERATION}
            """,
            new.id,
            new.viewer_id,
            new.conversation_id,
            new.user_message_id,
            new.message_id,
            new.model,
            new.provider,
            new.options,
            new.owner,
            new.lease_seconds,
        )
        await generation_log.insert(connection, [LogRow(new.id, 1, new.started_event)])
    assert row is not None  # noqa: S101 - an INSERT without a condition returns its row
    return Generation(**dict(row))


async def _hang_on(connection: Connection, new: NewGeneration) -> UUID | None:
    """Lock the conversation, and find the message that the new one follows."""
    conversation = await connection.fetchrow(
        "SELECT head_id FROM conversations WHERE viewer_id = $1 AND id = $2 FOR UPDATE",
        new.viewer_id,
        new.conversation_id,
    )
    if conversation is None:
        raise LookupError("conversation")
    parent_id: UUID | None = new.parent_id or conversation["head_id"]
    if parent_id is None:
        return None
    status = await connection.fetchval(
        "SELECT status FROM messages WHERE id = $1 AND conversation_id = $2", parent_id, new.conversation_id
    )
    if status is None:
        raise LookupError("parent")
    if status == "generating":
        raise Conflict("the reply that this message would follow is still being written")
    return parent_id


async def _insert_messages(connection: Connection, new: NewGeneration, parent_id: UUID | None) -> None:
    await connection.execute(
        """
        INSERT INTO messages (id, viewer_id, conversation_id, parent_id, role, content, status, model,
                              provider, created_at)
        VALUES ($1, $3, $4, $5, 'user', $6, 'completed', NULL, NULL, now()),
               ($2, $3, $4, $1, 'assistant', '', 'generating', $7, $8, now() + interval '1 microsecond')
        """,
        new.user_message_id,
        new.message_id,
        new.viewer_id,
        new.conversation_id,
        parent_id,
        new.text,
        new.model,
        new.provider,
    )
    await connection.execute(
        """
        UPDATE conversations
        SET head_id = $2, model = $3, provider = $4, system_prompt = coalesce($5, system_prompt),
            title = CASE title WHEN '' THEN $6 ELSE title END, updated_at = now()
        WHERE id = $1
        """,
        new.conversation_id,
        new.message_id,
        new.model,
        new.provider,
        new.system_prompt,
        new.title,
    )


async def get(database: Database, viewer_id: str, generation_id: UUID) -> Generation | None:
    row = await database.fetchrow(
        f"SELECT {_GENERATION} FROM generations g WHERE g.viewer_id = $1 AND g.id = $2",
        viewer_id,
        generation_id,
    )
    return Generation(**dict(row)) if row else None


async def get_many(database: Database, viewer_id: str, ids: Sequence[UUID]) -> list[Generation]:
    """Those of the generations that exist, in no particular order."""
    rows = await database.fetch(
        f"SELECT {_GENERATION} FROM generations g WHERE g.viewer_id = $1 AND g.id = ANY($2::uuid[])",
        viewer_id,
        ids,
    )
    return [Generation(**dict(row)) for row in rows]


async def of_messages(database: Database, viewer_id: str, message_ids: Sequence[UUID]) -> list[Generation]:
    """The generations that wrote, or write, these messages, in no particular order."""
    rows = await database.fetch(
        f"""
        SELECT {_GENERATION} FROM generations g
        WHERE g.viewer_id = $1 AND g.message_id = ANY($2::uuid[])
        """,
        viewer_id,
        message_ids,
    )
    return [Generation(**dict(row)) for row in rows]


async def renew(
    database: Database, owner: UUID, running: Sequence[UUID], lease_seconds: float
) -> dict[UUID, bool]:
    """Prolong the lease of those that are still this owner's, and say of each whether it is asked to stop."""
    rows = await database.fetch(
        """
        WITH running AS (
            SELECT id FROM generations WHERE id = ANY($2::uuid[]) AND owner = $1 AND finished_at IS NULL
            ORDER BY id FOR NO KEY UPDATE
        )
        UPDATE generations g SET lease_until = now() + make_interval(secs => $3)
        FROM running WHERE g.id = running.id
        RETURNING g.id, g.stop_requested_at IS NOT NULL AS is_to_stop
        """,
        owner,
        running,
        lease_seconds,
    )
    return {row["id"]: row["is_to_stop"] for row in rows}


async def request_stop(database: Database, viewer_id: str, generation_id: UUID) -> None:
    await database.execute(
        """
        UPDATE generations SET stop_requested_at = now()
        WHERE viewer_id = $1 AND id = $2 AND finished_at IS NULL AND stop_requested_at IS NULL
        """,
        viewer_id,
        generation_id,
    )


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A generation whose owner let its lease run out: the last number of its log, and how many characters
    the log holds."""

    id: UUID
    model: str
    provider: str
    started_at: datetime
    last_seq: int
    characters: int


async def claim_abandoned(database: Database, owner: UUID, lease_seconds: float) -> list[Abandoned]:
    """Make every generation whose lease has run out this owner's, by compare-and-set on the lease."""
    rows = await database.fetch(
        """
        WITH expired AS (
            SELECT id FROM generations WHERE finished_at IS NULL AND lease_until < now()
            ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
        ), claimed AS (
            UPDATE generations g SET owner = $1, lease_until = now() + make_interval(secs => $2)
            FROM expired WHERE g.id = expired.id
            RETURNING g.id, g.model, g.provider, g.started_at
        )
        SELECT c.id, c.model, c.provider, c.started_at, max(e.seq) AS last_seq,
               coalesce(sum(length(e.event->>'text')), 0) AS characters
        FROM claimed c JOIN generation_events e ON e.generation_id = c.id
        GROUP BY c.id, c.model, c.provider, c.started_at
        """,
        owner,
        lease_seconds,
    )
    return [Abandoned(**dict(row)) for row in rows]
