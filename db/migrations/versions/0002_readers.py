"""Who reads a generation that is to stop without readers, and which logs were purged."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "ALTER TABLE generations ADD COLUMN stops_without_readers boolean NOT NULL DEFAULT false",
    "ALTER TABLE generations ADD COLUMN purged_at timestamptz",
    """
    CREATE INDEX generations_to_purge ON generations (finished_at)
        WHERE finished_at IS NOT NULL AND purged_at IS NULL
    """,
    # A reader counts until present_until: it is prolonged while the reader is there, and set a little ahead
    # when its connection is lost.
    """
    CREATE TABLE generation_readers (
        generation_id uuid NOT NULL REFERENCES generations ON DELETE CASCADE,
        id            uuid NOT NULL,
        present_until timestamptz NOT NULL,
        PRIMARY KEY (generation_id, id)
    )
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("Parley's schema only moves forward; restore a backup to go back")
