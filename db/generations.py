"""Generations: begun with their messages, leased to the process that writes them, claimed when it is gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from db import generation_log, readers
from db.bell import Channel, ring
from db.database import Conflict, Connection, Database
from db.generation_log import LogRow


@dataclass(frozen=True, slots=True)
class Generation:
    """One reply being produced, or ended when ``finished_at`` is set. Those of one conversation begin in the
    order of their ``number``."""

    id: UUID
    viewer_id: str
    conversation_id: UUID
    user_message_id: UUID
    message_id: UUID
    model: str
    provider: str
    status: str
    owner: UUID
    stops_without_readers: bool
    started_at: datetime
    finished_at: datetime | None
    number: int


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """Everything that one send stores. ``parent_id`` None hangs the message on the conversation's head;
    ``title`` is for a conversation that begins here, or has none yet. ``client_key`` is the client's own
    name for this send, ``request_digest`` says what was sent by it."""

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
    client_key: str | None = None
    request_digest: bytes | None = None
    stops_without_readers: bool = False


_GENERATION = """
    g.id, g.viewer_id, g.conversation_id, g.user_message_id, g.message_id, g.model, g.provider, g.status,
    g.owner, g.stops_without_readers, g.started_at, g.finished_at,
    g.number
"""


async def begin(database: Database, new: NewGeneration) -> Generation:
    """Store the user's message, the reply's empty one and the generation, all or nothing.

    Raises Conflict while the message to hang on is still being written or when the client key was used
    before, LookupError when the conversation or the parent is not there.
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
                                          provider, options, status, owner, lease_until, client_key,
                                          request_digest, stops_without_readers)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'queued', $9, now() + make_interval(secs => $10),
                    $11, $12, $13)
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
            new.client_key,
            new.request_digest,
            new.stops_without_readers,
        )
        if new.stops_without_readers:
            await readers.expect(connection, new.id, new.lease_seconds)
        await generation_log.insert(connection, [LogRow(new.id, 1, new.started_event)])
        await ring(connection, Channel.CONVERSATIONS)
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


async def of_client_key(
    database: Database, viewer_id: str, client_key: str
) -> tuple[Generation, bytes] | None:
    """The generation that was begun with this key, and the digest of what was sent."""
    row = await database.fetchrow(
        f"""
        SELECT {_GENERATION}, g.request_digest FROM generations g WHERE g.viewer_id = $1 AND g.client_key = $2
        """,
        viewer_id,
        client_key,
    )
    if row is None:
        return None
    found = dict(row)
    digest: bytes = found.pop("request_digest")
    return Generation(**found), digest


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


async def current(database: Database, viewer_id: str, conversation_id: UUID) -> list[Generation]:
    """The conversation's newest generation, and all that run in it, in the order that they began in."""
    rows = await database.fetch(
        f"""
        WITH newest AS (
            SELECT id FROM generations WHERE viewer_id = $1 AND conversation_id = $2
            ORDER BY number DESC LIMIT 1
        )
        SELECT {_GENERATION} FROM generations g
        WHERE g.id IN (
            SELECT id FROM newest
            UNION SELECT id FROM generations
            WHERE viewer_id = $1 AND conversation_id = $2 AND finished_at IS NULL
        )
        ORDER BY g.number
        """,
        viewer_id,
        conversation_id,
    )
    return [Generation(**dict(row)) for row in rows]


async def begun_since(database: Database, numbers: Mapping[UUID, int]) -> list[Generation]:
    """Of each conversation those that follow the number beside it, in the order that they began in."""
    rows = await database.fetch(
        f"""
        SELECT {_GENERATION}
        FROM unnest($1::uuid[], $2::bigint[]) AS known(conversation_id, number)
        JOIN conversations c ON c.id = known.conversation_id
        JOIN generations g
            ON g.viewer_id = c.viewer_id AND g.conversation_id = c.id AND g.number > known.number
        ORDER BY g.number
        """,
        list(numbers),
        list(numbers.values()),
    )
    return [Generation(**dict(row)) for row in rows]


async def renew(
    database: Database, owner: UUID, running: Sequence[UUID], lease_seconds: float, *, judges_readers: bool
) -> dict[UUID, bool]:
    """Prolong the lease of those that are still this owner's, and say of each whether it is to stop: because
    somebody asked for that, or, where ``judges_readers``, because all its readers are gone."""
    rows = await database.fetch(
        """
        WITH running AS (
            SELECT id FROM generations WHERE id = ANY($2::uuid[]) AND owner = $1 AND finished_at IS NULL
            ORDER BY id FOR NO KEY UPDATE
        )
        UPDATE generations g SET lease_until = now() + make_interval(secs => $3)
        FROM running WHERE g.id = running.id
        RETURNING g.id, g.stop_requested_at IS NOT NULL OR $4 AND g.stops_without_readers AND NOT EXISTS (
            SELECT FROM generation_readers r WHERE r.generation_id = g.id AND r.present_until > now()
        ) AS is_to_stop
        """,
        owner,
        running,
        lease_seconds,
        judges_readers,
    )
    return {row["id"]: row["is_to_stop"] for row in rows}


async def switch_model(
    database: Database, owner: UUID, generation_id: UUID, *, model: str, provider: str
) -> None:
    """Another model answers, as its generation and its message say from now on; nothing changes in one that
    is no longer this owner's."""
    await database.execute(
        """
        WITH mine AS (
            UPDATE generations SET model = $3, provider = $4
            WHERE id = $1 AND owner = $2 AND finished_at IS NULL
            RETURNING message_id
        )
        UPDATE messages SET model = $3, provider = $4 FROM mine WHERE messages.id = mine.message_id
        """,
        generation_id,
        owner,
        model,
        provider,
    )


async def running(database: Database, ids: Sequence[UUID]) -> set[UUID]:
    """Those of the generations that exist and have not ended."""
    rows = await database.fetch(
        "SELECT id FROM generations WHERE id = ANY($1::uuid[]) AND finished_at IS NULL", ids
    )
    return {row["id"] for row in rows}


async def request_stop(database: Database, viewer_id: str, generation_id: UUID) -> None:
    """Ask the process that produces the reply to end it."""
    async with database.transaction() as connection:
        await connection.execute(
            """
            UPDATE generations SET stop_requested_at = now()
            WHERE viewer_id = $1 AND id = $2 AND finished_at IS NULL AND stop_requested_at IS NULL
            """,
            viewer_id,
            generation_id,
        )
        await ring(connection, Channel.STOP)


async def to_stop(database: Database, ids: Sequence[UUID]) -> list[UUID]:
    """Those of the running generations that somebody asked to stop."""
    rows = await database.fetch(
        """
        SELECT id FROM generations
        WHERE id = ANY($1::uuid[]) AND finished_at IS NULL AND stop_requested_at IS NOT NULL
        """,
        ids,
    )
    return [row["id"] for row in rows]


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


async def now(database: Database) -> datetime:
    """The time by which leases run."""
    told: datetime = await database.fetchval("SELECT now()")
    return told


async def claim_abandoned(
    database: Database, owner: UUID, lease_seconds: float, *, expired_at: datetime, limit: int
) -> list[Abandoned]:
    """Make up to ``limit`` generations whose lease had run out by ``expired_at`` this owner's, by
    compare-and-set on the lease."""
    async with database.transaction() as connection:
        claimed = await connection.fetch(
            """
            WITH expired AS (
                SELECT id FROM generations WHERE finished_at IS NULL AND lease_until < $3
                ORDER BY id LIMIT $4 FOR NO KEY UPDATE SKIP LOCKED
            )
            UPDATE generations g SET owner = $1, lease_until = now() + make_interval(secs => $2)
            FROM expired WHERE g.id = expired.id
            RETURNING g.id
            """,
            owner,
            lease_seconds,
            expired_at,
            limit,
        )
        # A statement of its own: what the late owner stored while the first one began is not in its snapshot.
        rows = await connection.fetch(
            """
            SELECT g.id, g.model, g.provider, g.started_at, max(e.seq) AS last_seq,
                   coalesce(sum(length(e.event->>'text')), 0) AS characters
            FROM generations g JOIN generation_events e ON e.generation_id = g.id
            WHERE g.id = ANY($1::uuid[]) GROUP BY g.id
            """,
            [row["id"] for row in claimed],
        )
    return [Abandoned(**dict(row)) for row in rows]
