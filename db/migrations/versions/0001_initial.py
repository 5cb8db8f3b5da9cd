"""Conversations, messages, generations with their log, models, provider configurations and usage."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    CREATE TABLE conversations (
        id            uuid PRIMARY KEY,
        viewer_id     text NOT NULL,
        title         text NOT NULL DEFAULT '',
        system_prompt text,
        model         text,
        provider      text,
        head_id       uuid,
        archived      boolean NOT NULL DEFAULT false,
        created_at    timestamptz NOT NULL DEFAULT now(),
        updated_at    timestamptz NOT NULL DEFAULT now(),
        UNIQUE (viewer_id, id)
    )
    """,
    "CREATE INDEX conversations_newest ON conversations (viewer_id, updated_at DESC, id DESC)",
    """
    CREATE TABLE messages (
        id                uuid PRIMARY KEY,
        viewer_id         text NOT NULL,
        conversation_id   uuid NOT NULL,
        parent_id         uuid REFERENCES messages ON DELETE CASCADE,
        role              text NOT NULL CHECK (role IN ('user', 'assistant')),
        content           text NOT NULL,
        reasoning         text,
        status            text NOT NULL
            CHECK (status IN ('generating', 'completed', 'stopped', 'failed', 'interrupted')),
        model             text,
        provider          text,
        finish_reason     text,
        error_code        text,
        error_message     text,
        error_retryable   boolean,
        prompt_tokens     integer,
        completion_tokens integer,
        usage_source      text CHECK (usage_source IN ('provider', 'estimated', 'mixed')),
        first_token_ms    double precision,
        duration_ms       double precision,
        created_at        timestamptz NOT NULL DEFAULT now(),
        FOREIGN KEY (viewer_id, conversation_id) REFERENCES conversations (viewer_id, id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX messages_of_conversation ON messages (conversation_id, created_at, id)",
    "CREATE INDEX messages_of_parent ON messages (parent_id)",
    """
    ALTER TABLE conversations
        ADD FOREIGN KEY (head_id) REFERENCES messages ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED
    """,
    "CREATE INDEX conversations_of_head ON conversations (head_id)",  # deleting a message looks for its heads
    # owner and lease_until are the fence of the log: only the process that holds an unexpired lease on a
    # generation that has not finished may write its events.
    """
    CREATE TABLE generations (
        id                uuid PRIMARY KEY,
        viewer_id         text NOT NULL,
        conversation_id   uuid NOT NULL,
        user_message_id   uuid NOT NULL REFERENCES messages ON DELETE CASCADE,
        message_id        uuid NOT NULL UNIQUE REFERENCES messages ON DELETE CASCADE,
        client_key        text,
        request_digest    bytea,
        model             text NOT NULL,
        provider          text NOT NULL,
        options           jsonb NOT NULL DEFAULT '{}',
        status            text NOT NULL CHECK (status IN (
            'queued', 'loading_model', 'waiting', 'streaming', 'retrying',
            'completed', 'stopped', 'failed', 'interrupted')),
        owner             uuid NOT NULL,
        lease_until       timestamptz NOT NULL,
        stop_requested_at timestamptz,
        started_at        timestamptz NOT NULL DEFAULT now(),
        finished_at       timestamptz,
        UNIQUE (viewer_id, client_key),
        FOREIGN KEY (viewer_id, conversation_id) REFERENCES conversations (viewer_id, id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX generations_running ON generations (lease_until) WHERE finished_at IS NULL",
    "CREATE INDEX generations_of_user_message ON generations (user_message_id)",
    "CREATE INDEX generations_of_conversation ON generations (viewer_id, conversation_id)",
    """
    CREATE TABLE generation_events (
        generation_id uuid NOT NULL REFERENCES generations ON DELETE CASCADE,
        seq           integer NOT NULL CHECK (seq > 0),
        event         jsonb NOT NULL,
        created_at    timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (generation_id, seq)
    )
    """,
    """
    CREATE TABLE generation_attempts (
        generation_id  uuid NOT NULL REFERENCES generations ON DELETE CASCADE,
        number         integer NOT NULL CHECK (number > 0),
        provider       text NOT NULL,
        model          text NOT NULL,
        started_at     timestamptz NOT NULL,
        first_token_at timestamptz,
        finished_at    timestamptz NOT NULL,
        outcome        text NOT NULL CHECK (outcome IN ('completed', 'stopped', 'failed', 'interrupted')),
        error_code     text,
        PRIMARY KEY (generation_id, number)
    )
    """,
    """
    CREATE TABLE model_metadata (
        provider   text NOT NULL,
        name       text NOT NULL,
        details    jsonb NOT NULL,
        seen_at    timestamptz NOT NULL DEFAULT now(),
        loaded_at  timestamptz,
        PRIMARY KEY (provider, name)
    )
    """,
    """
    CREATE TABLE provider_configs (
        name                  text PRIMARY KEY,
        version               integer NOT NULL DEFAULT 1,
        enabled               boolean NOT NULL DEFAULT true,
        priority              integer NOT NULL DEFAULT 0,
        default_models        text[] NOT NULL DEFAULT '{}',
        max_concurrent_models integer,
        timeout_ms            integer,
        retries               integer,
        settings              jsonb NOT NULL DEFAULT '{}',
        updated_by            text NOT NULL,
        updated_at            timestamptz NOT NULL DEFAULT now()
    )
    """,
    # No foreign key: what was used stays known after the conversation is deleted.
    """
    CREATE TABLE model_usage_stats (
        generation_id     uuid NOT NULL,
        attempt           integer NOT NULL,
        viewer_id         text NOT NULL,
        provider          text NOT NULL,
        model             text NOT NULL,
        outcome           text NOT NULL CHECK (outcome IN ('completed', 'stopped', 'failed', 'interrupted')),
        prompt_tokens     integer,
        completion_tokens integer,
        usage_source      text NOT NULL CHECK (usage_source IN ('provider', 'estimated', 'mixed')),
        first_token_ms    double precision,
        duration_ms       double precision NOT NULL,
        created_at        timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (generation_id, attempt)
    )
    """,
    "CREATE INDEX model_usage_stats_by_time ON model_usage_stats (viewer_id, created_at, provider, model)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("Parley's schema only moves forward; restore a backup to go back")
