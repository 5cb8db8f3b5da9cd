CREATE TABLE public.conversations (
    id uuid NOT NULL,
    viewer_id text NOT NULL,
    title text DEFAULT ''::text NOT NULL,
    system_prompt text,
    model text,
    provider text,
    head_id uuid,
    archived boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.generation_attempts (
    generation_id uuid NOT NULL,
    number integer NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    first_token_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    outcome text NOT NULL,
    error_code text,
    CONSTRAINT generation_attempts_number_check CHECK ((number > 0)),
    CONSTRAINT generation_attempts_outcome_check CHECK ((outcome = ANY (ARRAY['completed'::text, 'stopped'::text, 'failed'::text, 'interrupted'::text])))
);

CREATE TABLE public.generation_events (
    generation_id uuid NOT NULL,
    seq integer NOT NULL,
    event jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT generation_events_seq_check CHECK ((seq > 0))
);

CREATE TABLE public.generation_readers (
    generation_id uuid NOT NULL,
    id uuid NOT NULL,
    present_until timestamp with time zone NOT NULL
);

CREATE TABLE public.generations (
    id uuid NOT NULL,
    viewer_id text NOT NULL,
    conversation_id uuid NOT NULL,
    user_message_id uuid NOT NULL,
    message_id uuid NOT NULL,
    client_key text,
    request_digest bytea,
    model text NOT NULL,
    provider text NOT NULL,
    options jsonb DEFAULT '{}'::jsonb NOT NULL,
    status text NOT NULL,
    owner uuid NOT NULL,
    lease_until timestamp with time zone NOT NULL,
    stop_requested_at timestamp with time zone,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    finished_at timestamp with time zone,
    stops_without_readers boolean DEFAULT false NOT NULL,
    purged_at timestamp with time zone,
    number bigint NOT NULL,
    CONSTRAINT generations_status_check CHECK ((status = ANY (ARRAY['queued'::text, 'loading_model'::text, 'waiting'::text, 'streaming'::text, 'retrying'::text, 'completed'::text, 'stopped'::text, 'failed'::text, 'interrupted'::text])))
);

ALTER TABLE public.generations ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.generations_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.messages (
    id uuid NOT NULL,
    viewer_id text NOT NULL,
    conversation_id uuid NOT NULL,
    parent_id uuid,
    role text NOT NULL,
    content text NOT NULL,
    reasoning text,
    status text NOT NULL,
    model text,
    provider text,
    finish_reason text,
    error_code text,
    error_message text,
    error_retryable boolean,
    prompt_tokens integer,
    completion_tokens integer,
    usage_source text,
    first_token_ms double precision,
    duration_ms double precision,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT messages_role_check CHECK ((role = ANY (ARRAY['user'::text, 'assistant'::text]))),
    CONSTRAINT messages_status_check CHECK ((status = ANY (ARRAY['generating'::text, 'completed'::text, 'stopped'::text, 'failed'::text, 'interrupted'::text]))),
    CONSTRAINT messages_usage_source_check CHECK ((usage_source = ANY (ARRAY['provider'::text, 'estimated'::text, 'mixed'::text])))
);

CREATE TABLE public.model_metadata (
    provider text NOT NULL,
    name text NOT NULL,
    details jsonb NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    loaded_at timestamp with time zone
);

CREATE TABLE public.model_usage_stats (
    generation_id uuid NOT NULL,
    attempt integer NOT NULL,
    viewer_id text NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    outcome text NOT NULL,
    prompt_tokens integer,
    completion_tokens integer,
    usage_source text NOT NULL,
    first_token_ms double precision,
    duration_ms double precision NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT model_usage_stats_outcome_check CHECK ((outcome = ANY (ARRAY['completed'::text, 'stopped'::text, 'failed'::text, 'interrupted'::text]))),
    CONSTRAINT model_usage_stats_usage_source_check CHECK ((usage_source = ANY (ARRAY['provider'::text, 'estimated'::text, 'mixed'::text])))
);

CREATE TABLE public.provider_configs (
    name text NOT NULL,
    version integer DEFAULT 1 NOT NULL,
    enabled boolean DEFAULT true NOT NULL,
    priority integer DEFAULT 0 NOT NULL,
    default_models text[] DEFAULT '{}'::text[] NOT NULL,
    max_concurrent_models integer,
    timeout_ms integer,
    retries integer,
    settings jsonb DEFAULT '{}'::jsonb NOT NULL,
    updated_by text NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE ONLY public.conversations
    ADD CONSTRAINT conversations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.conversations
    ADD CONSTRAINT conversations_viewer_id_id_key UNIQUE (viewer_id, id);

ALTER TABLE ONLY public.generation_attempts
    ADD CONSTRAINT generation_attempts_pkey PRIMARY KEY (generation_id, number);

ALTER TABLE ONLY public.generation_events
    ADD CONSTRAINT generation_events_pkey PRIMARY KEY (generation_id, seq);

ALTER TABLE ONLY public.generation_readers
    ADD CONSTRAINT generation_readers_pkey PRIMARY KEY (generation_id, id);

ALTER TABLE ONLY public.generations
    ADD CONSTRAINT generations_message_id_key UNIQUE (message_id);

ALTER TABLE ONLY public.generations
    ADD CONSTRAINT generations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.generations
    ADD CONSTRAINT generations_viewer_id_client_key_key UNIQUE (viewer_id, client_key);

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT messages_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.model_metadata
    ADD CONSTRAINT model_metadata_pkey PRIMARY KEY (provider, name);

ALTER TABLE ONLY public.model_usage_stats
    ADD CONSTRAINT model_usage_stats_pkey PRIMARY KEY (generation_id, attempt);

ALTER TABLE ONLY public.provider_configs
    ADD CONSTRAINT provider_configs_pkey PRIMARY KEY (name);

CREATE INDEX conversations_newest ON public.conversations USING btree (viewer_id, updated_at DESC, id DESC);

CREATE INDEX conversations_of_head ON public.conversations USING btree (head_id);

CREATE INDEX generations_of_conversation ON public.generations USING btree (viewer_id, conversation_id, number);

CREATE INDEX generations_of_user_message ON public.generations USING btree (user_message_id);

CREATE INDEX generations_running ON public.generations USING btree (lease_until) WHERE (finished_at IS NULL);

CREATE INDEX generations_running_in ON public.generations USING btree (viewer_id, conversation_id) WHERE (finished_at IS NULL);

CREATE INDEX generations_to_purge ON public.generations USING btree (finished_at) WHERE ((finished_at IS NOT NULL) AND (purged_at IS NULL));

CREATE INDEX messages_of_conversation ON public.messages USING btree (conversation_id, created_at, id);

CREATE INDEX messages_of_parent ON public.messages USING btree (parent_id);

CREATE INDEX model_usage_stats_by_time ON public.model_usage_stats USING btree (viewer_id, created_at, provider, model);

ALTER TABLE ONLY public.conversations
    ADD CONSTRAINT conversations_head_id_fkey FOREIGN KEY (head_id) REFERENCES public.messages(id) ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED;

ALTER TABLE ONLY public.generation_attempts
    ADD CONSTRAINT generation_attempts_generation_id_fkey FOREIGN KEY (generation_id) REFERENCES public.generations(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.generation_events
    ADD CONSTRAINT generation_events_generation_id_fkey FOREIGN KEY (generation_id) REFERENCES public.generations(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.generation_readers
    ADD CONSTRAINT generation_readers_generation_id_fkey FOREIGN KEY (generation_id) REFERENCES public.generations(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.generations
    ADD CONSTRAINT generations_message_id_fkey FOREIGN KEY (message_id) REFERENCES public.messages(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.generations
    ADD CONSTRAINT generations_user_message_id_fkey FOREIGN KEY (user_message_id) REFERENCES public.messages(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.generations
    ADD CONSTRAINT generations_viewer_id_conversation_id_fkey FOREIGN KEY (viewer_id, conversation_id) REFERENCES public.conversations(viewer_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT messages_parent_id_fkey FOREIGN KEY (parent_id) REFERENCES public.messages(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT messages_viewer_id_conversation_id_fkey FOREIGN KEY (viewer_id, conversation_id) REFERENCES public.conversations(viewer_id, id) ON DELETE CASCADE;
