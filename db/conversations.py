"""Conversations and their trees of messages."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db.bell import Channel, ring
from db.database import Database
from db.generation_log import joined_text


@dataclass(frozen=True, slots=True)
class Conversation:
    """``model`` is the full name of the model that was asked last, ``head_id`` the message that the next
    one hangs on."""

    id: UUID
    viewer_id: str
    title: str
    system_prompt: str | None
    model: str | None
    provider: str | None
    head_id: UUID | None
    archived: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class NewConversation:
    id: UUID
    viewer_id: str
    title: str
    system_prompt: str | None
    model: str | None
    provider: str | None


@dataclass(frozen=True, slots=True)
class ConversationChange:
    """None leaves what there is; an empty system prompt takes it away."""

    title: str | None = None
    system_prompt: str | None = None
    archived: bool | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. While its status is ``generating``, the content is what its log holds so far."""

    id: UUID
    conversation_id: UUID
    parent_id: UUID | None
    role: str
    content: str
    reasoning: str | None
    status: str
    model: str | None
    provider: str | None
    finish_reason: str | None
    error_code: str | None
    error_message: str | None
    error_retryable: bool | None
    prompt_tokens: int | None
    completion_tokens: int | None
    usage_source: str | None
    first_token_ms: float | None
    duration_ms: float | None
    created_at: datetime


_CONVERSATION = """
    c.id, c.viewer_id, c.title, c.system_prompt, c.model, c.provider, c.head_id, c.archived, c.created_at,
    c.updated_at
"""

_MESSAGE = """
    m.id, m.conversation_id, m.parent_id, m.role,
    CASE m.status WHEN 'generating' THEN coalesce(log.content, '') ELSE m.content END AS content,
    CASE m.status WHEN 'generating' THEN log.reasoning ELSE m.reasoning END AS reasoning,
    m.status, m.model, m.provider, m.finish_reason, m.error_code, m.error_message, m.error_retryable,
    m.prompt_tokens, m.completion_tokens, m.usage_source, m.first_token_ms, m.duration_ms, m.created_at
"""

_LOG_SO_FAR = f"""
    LEFT JOIN generations g ON g.message_id = m.id AND m.status = 'generating'
    LEFT JOIN LATERAL ({joined_text("g.id")}) log ON g.id IS NOT NULL
"""


async def get(database: Database, viewer_id: str, conversation_id: UUID) -> Conversation | None:
    row = await database.fetchrow(
        f"SELECT {_CONVERSATION} FROM conversations c WHERE c.viewer_id = $1 AND c.id = $2",
        viewer_id,
        conversation_id,
    )
    return Conversation(**dict(row)) if row else None


async def get_many(database: Database, viewer_id: str, ids: Sequence[UUID]) -> list[Conversation]:
    """Those of the conversations that exist, in no particular order."""
    rows = await database.fetch(
        f"SELECT {_CONVERSATION} FROM conversations c WHERE c.viewer_id = $1 AND c.id = ANY($2::uuid[])",
        viewer_id,
        ids,
    )
    return [Conversation(**dict(row)) for row in rows]


async def create(database: Database, conversation: NewConversation) -> Conversation:
    """A conversation without messages."""
    row = await database.fetchrow(
        f"""
        INSERT INTO conversations AS c (id, viewer_id, title, system_prompt, model, provider)
        VALUES ($1, $2, $3, $4, $5, $6)
        RETURNING {_CONVERSATION}
        """,
        conversation.id,
        conversation.viewer_id,
        conversation.title,
        conversation.system_prompt,
        conversation.model,
        conversation.provider,
    )
    assert row is not None  # noqa: S101 - an INSERT without a condition returns its row
    return Conversation(**dict(row))


async def update(
    database: Database, viewer_id: str, conversation_id: UUID, change: ConversationChange
) -> Conversation | None:
    """The conversation as it is then; None where there is none."""
    async with database.transaction() as connection:
        row = await connection.fetchrow(
            f"""
            UPDATE conversations c
            SET title = coalesce($3, title), system_prompt = nullif(coalesce($4, system_prompt), ''),
                archived = coalesce($5, archived), updated_at = now()
            WHERE c.viewer_id = $1 AND c.id = $2
            RETURNING {_CONVERSATION}
            """,
            viewer_id,
            conversation_id,
            change.title,
            change.system_prompt,
            change.archived,
        )
        await ring(connection, Channel.CONVERSATIONS)
    return Conversation(**dict(row)) if row else None


async def changed(
    database: Database, seen: Collection[tuple[UUID, datetime]]
) -> dict[UUID, Conversation | None]:
    """Those that have changed since they were seen with the ``updated_at`` beside them; None for those that
    were deleted. Every change moves ``updated_at``, a generation's begin and its end among them."""
    rows = await database.fetch(
        f"""
        SELECT seen.id AS seen_id, {_CONVERSATION}
        FROM unnest($1::uuid[], $2::timestamptz[]) AS seen(id, updated_at)
        LEFT JOIN conversations c ON c.id = seen.id
        WHERE c.updated_at IS DISTINCT FROM seen.updated_at
        """,
        [id_ for id_, _ in seen],
        [updated_at for _, updated_at in seen],
    )
    found = {columns.pop("seen_id"): columns for columns in map(dict, rows)}
    return {id_: Conversation(**columns) if columns["id"] else None for id_, columns in found.items()}


@dataclass(frozen=True, slots=True)
class PagePosition:
    """The conversation that a page follows, in the order newest change first."""

    updated_at: datetime
    id: UUID


async def page(
    database: Database,
    viewer_id: str,
    *,
    limit: int,
    after: PagePosition | None = None,
    search: str | None = None,
) -> list[Conversation]:
    """Up to ``limit`` conversations, the last changed first. ``search`` matches titles and messages, in any
    case."""
    rows = await database.fetch(
        f"""
        SELECT {_CONVERSATION} FROM conversations c
        WHERE c.viewer_id = $1
          AND ($2::timestamptz IS NULL OR (c.updated_at, c.id) < ($2, $3::uuid))
          AND ($4::text IS NULL OR c.title ILIKE $4 OR EXISTS (
              SELECT FROM messages m WHERE m.conversation_id = c.id AND m.content ILIKE $4))
        ORDER BY c.updated_at DESC, c.id DESC
        LIMIT $5
        """,
        viewer_id,
        after.updated_at if after else None,
        after.id if after else None,
        _contains(search),
        limit,
    )
    return [Conversation(**dict(row)) for row in rows]


def _contains(search: str | None) -> str | None:
    if search is None:
        return None
    escaped = search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


async def messages(database: Database, viewer_id: str, ids: Sequence[UUID]) -> list[Message]:
    """Those of the messages that exist, in no particular order."""
    rows = await database.fetch(
        f"SELECT {_MESSAGE} FROM messages m {_LOG_SO_FAR} WHERE m.viewer_id = $1 AND m.id = ANY($2::uuid[])",
        viewer_id,
        ids,
    )
    return [Message(**dict(row)) for row in rows]


async def branch(
    database: Database, viewer_id: str, leaf_id: UUID, *, limit: int | None = None, after: UUID | None = None
) -> list[Message]:
    """The path from the conversation's first message down to ``leaf_id``, oldest first; of it, up to
    ``limit`` messages that follow ``after``."""
    rows = await database.fetch(
        f"""
        WITH RECURSIVE path AS (
            SELECT id, parent_id, 0 AS above_leaf FROM messages WHERE viewer_id = $1 AND id = $2
            UNION ALL
            SELECT parent.id, parent.parent_id, path.above_leaf + 1
            FROM path JOIN messages parent ON parent.id = path.parent_id
        )
        SELECT {_MESSAGE}
        FROM path JOIN messages m USING (id) {_LOG_SO_FAR}
        WHERE $3::uuid IS NULL OR path.above_leaf < (SELECT above_leaf FROM path WHERE id = $3)
        ORDER BY path.above_leaf DESC
        LIMIT $4
        """,
        viewer_id,
        leaf_id,
        after,
        limit,
    )
    return [Message(**dict(row)) for row in rows]
