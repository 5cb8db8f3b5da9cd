"""The order in which generations begin, for those who watch their conversations."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_STATEMENTS = (
    # Whoever begins a generation has its conversation locked until the commit. So within a conversation the
    # numbers grow in the order of the commits: who knows all up to one asks for what follows and misses none.
    "ALTER TABLE generations ADD COLUMN number bigint NOT NULL GENERATED ALWAYS AS IDENTITY",
    "DROP INDEX generations_of_conversation",
    "CREATE INDEX generations_of_conversation ON generations (viewer_id, conversation_id, number)",
    """
    CREATE INDEX generations_running_in ON generations (viewer_id, conversation_id)
        WHERE finished_at IS NULL
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("Parley's schema only moves forward; restore a backup to go back")
