"""Deleting conversations and parts of them. What was used stays known: usage is not deleted."""

from uuid import UUID

from db.bell import Channel, ring
from db.database import Conflict, Connection, Database

_BELOW = """
    WITH RECURSIVE below AS (
        SELECT id FROM messages WHERE viewer_id = $1 AND parent_id = $2
        UNION ALL
        SELECT child.id FROM below JOIN messages child ON child.parent_id = below.id
    )
"""


async def running_below(database: Database, viewer_id: str, message_id: UUID) -> list[UUID]:
    """The generations that write messages below this one now."""
    rows = await database.fetch(
        f"""
        {_BELOW}
        SELECT g.id FROM below JOIN generations g ON g.message_id = below.id WHERE g.finished_at IS NULL
        """,
        viewer_id,
        message_id,
    )
    return [row["id"] for row in rows]


async def running_in(database: Database, viewer_id: str, conversation_id: UUID) -> list[UUID]:
    """The generations that write to this conversation now."""
    rows = await database.fetch(
        """
        SELECT id FROM generations
        WHERE viewer_id = $1 AND conversation_id = $2 AND finished_at IS NULL
        """,
        viewer_id,
        conversation_id,
    )
    return [row["id"] for row in rows]


async def delete_below(database: Database, viewer_id: str, message_id: UUID) -> int:
    """Delete every message below this one, and return how many there were; a head among them moves up to
    this one. Raises LookupError where there is no such message, Conflict while one of them is written."""
    async with database.transaction() as connection:
        conversation_id = await connection.fetchval(
            "SELECT conversation_id FROM messages WHERE viewer_id = $1 AND id = $2", viewer_id, message_id
        )
        if conversation_id is None:
            raise LookupError("message")
        await _lock(connection, viewer_id, conversation_id)
        rows = await connection.fetch(
            f"{_BELOW} SELECT m.id, m.status FROM below JOIN messages m USING (id)", viewer_id, message_id
        )
        if any(row["status"] == "generating" for row in rows):
            raise Conflict("a reply that would be deleted has begun in the meantime; try again")
        below = [row["id"] for row in rows]
        if below:
            await connection.execute(
                """
                UPDATE conversations
                SET head_id = CASE WHEN head_id = ANY($3::uuid[]) THEN $2 ELSE head_id END, updated_at = now()
                WHERE id = $1
                """,
                conversation_id,
                message_id,
                below,
            )
            await connection.execute("DELETE FROM messages WHERE id = ANY($1::uuid[])", below)
            await ring(connection, Channel.CONVERSATIONS)
    return len(below)


async def delete_conversation(database: Database, viewer_id: str, conversation_id: UUID) -> None:
    """Raises LookupError where there is no such conversation, Conflict while a reply of it is written."""
    async with database.transaction() as connection:
        await _lock(connection, viewer_id, conversation_id)
        running = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM messages WHERE conversation_id = $1 AND status = 'generating')",
            conversation_id,
        )
        if running:
            raise Conflict("a reply has begun in this conversation in the meantime; try again")
        await connection.execute("DELETE FROM conversations WHERE id = $1", conversation_id)
        await ring(connection, Channel.CONVERSATIONS)


async def _lock(connection: Connection, viewer_id: str, conversation_id: UUID) -> None:
    """Whoever begins a generation locks its conversation first too: none begins in what is deleted."""
    found = await connection.fetchval(
        "SELECT id FROM conversations WHERE viewer_id = $1 AND id = $2 FOR UPDATE", viewer_id, conversation_id
    )
    if found is None:
        raise LookupError("conversation")
