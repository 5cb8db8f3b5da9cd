"""What was last known of each provider's models, kept for when the provider cannot be asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from db.database import Database


@dataclass(frozen=True, slots=True)
class KnownModel:
    """``details`` is JSON; what it holds is the caller's. ``loaded_at`` is when it was last loaded, as far as
    that was noted."""

    provider: str
    name: str
    details: str
    loaded_at: datetime | None = None


async def replace(database: Database, provider: str, models: Sequence[KnownModel]) -> None:
    """Make these the provider's known models; one that is not among them any more is forgotten. When one was
    loaded stays as ``note_loaded`` wrote it."""
    await database.execute(
        """
        WITH gone AS (
            DELETE FROM model_metadata WHERE provider = $1 AND name <> ALL($2::text[])
        )
        INSERT INTO model_metadata (provider, name, details)
        SELECT $1, name, details::jsonb FROM unnest($2::text[], $3::text[]) AS known(name, details)
        ORDER BY name
        ON CONFLICT (provider, name) DO UPDATE SET details = excluded.details, seen_at = now()
        """,
        provider,
        [model.name for model in models],
        [model.details for model in models],
    )


async def note_loaded(
    database: Database, provider: str, name: str, loaded_at: datetime | None = None
) -> None:
    """Remember when the model was last loaded, now if that is not known. Does nothing for one that is not
    known itself."""
    await database.execute(
        """
        UPDATE model_metadata SET loaded_at = coalesce($3::timestamptz, now())
        WHERE provider = $1 AND name = $2
        """,
        provider,
        name,
        loaded_at,
    )


async def known(database: Database) -> list[KnownModel]:
    """Every provider's known models, by name."""
    rows = await database.fetch(
        """
        SELECT provider, name, details::text AS details, loaded_at
        FROM model_metadata ORDER BY provider, name
        """
    )
    return [KnownModel(**dict(row)) for row in rows]
