"""Who reads a generation that is to stop without readers, on whichever replica."""

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from db.bell import Channel, ring
from db.database import Connection, Database


@dataclass(frozen=True, slots=True)
class Reader:
    id: UUID
    generation_id: UUID


async def expect(connection: Connection, generation_id: UUID, seconds: float) -> None:
    """Count whoever began the generation as its reader, for as long as that, until the first one is there."""
    await connection.execute(
        """
        INSERT INTO generation_readers (generation_id, id, present_until)
        VALUES ($1, $1, now() + make_interval(secs => $2))
        """,
        generation_id,
        seconds,
    )


async def renew(database: Database, readers: Collection[Reader], seconds: float) -> None:
    """They are there, and count for as long as that. Those of generations that were deleted are left out."""
    await database.execute(
        """
        WITH here AS (
            SELECT g.id AS generation_id, new.id
            FROM unnest($1::uuid[], $2::uuid[]) AS new(id, generation_id)
            JOIN generations g ON g.id = new.generation_id AND g.finished_at IS NULL
        ), arrived AS (
            DELETE FROM generation_readers r USING here WHERE r.generation_id = here.generation_id
                AND r.id = here.generation_id
        )
        INSERT INTO generation_readers AS r (generation_id, id, present_until)
        SELECT generation_id, id, now() + make_interval(secs => $3) FROM here
        ON CONFLICT (generation_id, id) DO UPDATE SET present_until = excluded.present_until
        """,
        [reader.id for reader in readers],
        [reader.generation_id for reader in readers],
        seconds,
    )


async def leave(database: Database, gone: Collection[Reader]) -> None:
    """They do not count any more; a generation whose last one was among them is asked to stop."""
    generation_ids = [reader.generation_id for reader in gone]
    async with database.transaction() as connection:
        # Of two that leave at the same moment the second one sees that the first is gone.
        await connection.execute(
            "SELECT FROM generations WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE", generation_ids
        )
        await connection.execute(
            """
            DELETE FROM generation_readers r USING unnest($1::uuid[], $2::uuid[]) AS gone(id, generation_id)
            WHERE r.generation_id = gone.generation_id AND r.id IN (gone.generation_id, gone.id)
            """,
            [reader.id for reader in gone],
            generation_ids,
        )
        stopped = await connection.fetch(
            """
            UPDATE generations g SET stop_requested_at = now()
            WHERE id = ANY($1::uuid[]) AND finished_at IS NULL AND stop_requested_at IS NULL
              AND stops_without_readers AND NOT EXISTS (
                  SELECT FROM generation_readers WHERE generation_id = g.id AND present_until > now())
            RETURNING id
            """,
            generation_ids,
        )
        if stopped:
            await ring(connection, Channel.STOP)
