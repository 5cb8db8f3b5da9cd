"""What was last known of each provider's models, kept for when the provider cannot be asked."""

from collections.abc import Sequence
from dataclasses import dataclass

from db.database import Database


@dataclass(frozen=True, slots=True)
class KnownModel:
    """``details`` is JSON; what it holds is the caller's."""

    provider: str
    name: str
    details: str


async def replace(database: Database, provider: str, models: Sequence[KnownModel]) -> None:
    """Make these the provider's known models; one that is not among them any more is forgotten."""
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


async def known(database: Database) -> list[KnownModel]:
    """Every provider's known models, by name."""
    rows = await database.fetch(
        "SELECT provider, name, details::text AS details FROM model_metadata ORDER BY provider, name"
    )
    return [KnownModel(**dict(row)) for row in rows]
