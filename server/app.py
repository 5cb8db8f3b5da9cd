"""Everything there is, built from the settings and put together; nothing else knows all the parts."""

import asyncio
import gc
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.routing import Route, WebSocketRoute

from db.bell import Bell
from db.database import Database, DatabaseUnavailable
from db.embedded import embedded_postgres
from db.migrations.runner import is_migrated, migrate
from providers.anthropic import ANTHROPIC_URL, Anthropic, AnthropicSettings
from providers.gemini import GEMINI_URL, Gemini, GeminiSettings
from providers.huggingface.memory import MIB
from providers.huggingface.provider import HuggingFace
from providers.huggingface.settings import HuggingFaceSettings, default_max_memory_bytes, default_threads
from providers.ollama import Ollama, OllamaSettings
from providers.openai import HF_ROUTER, OPENAI, Dialect, OpenAI, OpenAISettings
from providers.registry import Registration, Registry
from providers.reply import ReplyLimits
from providers.retry import Retries
from providers.router import Router
from providers.scripted import Scripted
from server.api import Context, graphql_app
from server.chat import ChatEngine
from server.draft import DraftLimits
from server.errors import ChatError, ErrorCode
from server.guard import Guard
from server.health import health_routes
from server.monitor import Monitor
from server.pages import page_routes
from server.purge import Purge
from server.readers import Readers
from server.settings import ALIASES, PROVIDERS, Settings, SettingsError, worker_environment
from server.stream_log import StreamLog
from server.watcher import Watcher

_GRACE_SECONDS = 5.0
_VIEWER = "local"  # there is no login yet: who may connect is this machine's user
_SOCKET_FOLDER_BYTES = 64  # a Unix socket's whole path has room for 103 on the narrowest system


@dataclass(frozen=True, slots=True)
class Parts:
    """What a running server consists of. ``drain`` ends all replies, the long ones as interrupted, and takes
    no new ones; everything else goes on."""

    database: Database
    registry: Registry
    router: Router
    log: StreamLog
    readers: Readers
    watcher: Watcher
    engine: ChatEngine
    drain: Callable[[], Awaitable[None]]


def create_app(settings: Settings) -> Starlette:
    """The ASGI application. While its lifespan lasts ``app.state.parts`` has its parts; entering it raises
    DatabaseError. Setting ``app.state.closing`` cuts the event streams that are open."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_parts(settings) as parts:
            app.state.parts = parts
            # What starting has made stays; a full collection that walks it would hold up every stream.
            gc.collect()
            gc.freeze()
            yield

    async def ping() -> None:
        await app.state.parts.database.ping()

    async def accepting() -> None:
        if app.state.parts.engine.is_draining:
            raise ChatError(ErrorCode.OVERLOADED, "the server is shutting down")

    async def migrated() -> None:
        if not await is_migrated(app.state.parts.database):
            raise DatabaseUnavailable("the database lacks migrations of this server")

    def context(_: HTTPConnection) -> Context:
        parts: Parts = app.state.parts
        return Context(
            parts.database,
            parts.engine,
            parts.log,
            parts.registry,
            parts.router,
            parts.readers,
            parts.watcher,
            _VIEWER,
        )

    closing = asyncio.Event()
    graphql = graphql_app(context, closing)
    app = Starlette(
        routes=[
            Route("/graphql", graphql, methods=["POST"]),
            WebSocketRoute("/graphql", graphql),
            *health_routes({"database": ping, "schema": migrated, "engine": accepting}),
            *page_routes(graphql),
        ],
        middleware=[Middleware(Guard, settings.allowed_hosts, settings.allowed_origins)],
        lifespan=lifespan,
    )
    app.state.closing = closing
    return app


@asynccontextmanager
async def open_parts(settings: Settings) -> AsyncIterator[Parts]:
    """Start everything, each part outliving those that need it. Raises DatabaseError."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(database_url(settings))
        await migrate(url)
        database = await stack.enter_async_context(Database.open(url))
        registry = await stack.enter_async_context(open_registry(settings))
        interval_seconds = _monitoring_seconds(settings, settings.model_health_check_interval_ms)
        monitor = Monitor(database, registry, interval_seconds=interval_seconds)
        await stack.enter_async_context(monitor.running())
        router = _router(registry, settings)
        bell = await stack.enter_async_context(Bell.listening(url))
        log = await stack.enter_async_context(StreamLog(database, bell, uuid4()).running())
        absences = Readers(
            database, absence_seconds=log.timing.lease_seconds, retry_seconds=log.timing.retry_seconds
        )
        readers = await stack.enter_async_context(absences.running())
        conversations = Watcher(
            database, bell, poll_seconds=log.timing.poll_seconds, patience_seconds=log.timing.patience_seconds
        )
        watcher = await stack.enter_async_context(conversations.running())
        retention_seconds = settings.events_retention_ms / 1000
        await stack.enter_async_context(Purge(database, retention_seconds=retention_seconds).running())
        chatting = await stack.enter_async_context(AsyncExitStack())
        limits = DraftLimits(default_max_tokens=settings.default_max_tokens, max_tokens=settings.max_tokens)
        engine = ChatEngine(database, router, log, limits)
        await chatting.enter_async_context(engine.running(grace_seconds=_GRACE_SECONDS))
        yield Parts(database, registry, router, log, readers, watcher, engine, chatting.aclose)


@asynccontextmanager
async def database_url(settings: Settings) -> AsyncIterator[str]:
    """The URL of the configured Postgres, or else of a private one that runs for as long as it is needed."""
    if settings.database_url:
        yield settings.database_url.get_secret_value()
        return
    async with embedded_postgres(_data_dir(settings) / "postgres") as url:
        yield url


@asynccontextmanager
async def open_registry(settings: Settings) -> AsyncIterator[Registry]:
    """Every provider, the disabled ones too. Nothing is asked of any of them yet."""
    with _runtime_folder(_data_dir(settings)) as runtime_dir:
        registry = Registry(_registrations(settings, runtime_dir))
        try:
            yield registry
        finally:
            await registry.aclose()


def _router(registry: Registry, settings: Settings) -> Router:
    return Router(
        registry,
        default_provider=settings.default_model_provider,
        default_models={
            name: endpoint.default_model
            for name, endpoint in settings.endpoints.items()
            if endpoint.default_model
        },
        fallback_order=settings.fallback_order,
        retries=Retries(settings.retry_attempts, settings.retry_delay_ms / 1000),
    )


def _monitoring_seconds(settings: Settings, interval_ms: int) -> float | None:
    return interval_ms / 1000 if settings.enable_model_monitoring else None


def _huggingface(settings: Settings, runtime_dir: Path) -> Registration:
    enabled, mebibytes = settings.huggingface_enabled, settings.huggingface_max_memory
    provider = HuggingFace(
        HuggingFaceSettings(
            models_path=settings.usable_models_path() if enabled else settings.huggingface_models_path,
            cache_dir=settings.huggingface_cache_dir or settings.data_dir / "cache" / "huggingface",
            runtime_dir=runtime_dir,
            threads=settings.huggingface_threads or default_threads(),
            device=settings.huggingface_device,
            precision=settings.huggingface_precision,
            load_timeout_seconds=settings.model_load_timeout_ms / 1000,
            stream_timeout_seconds=settings.stream_timeout_ms / 1000,
            max_loaded_models=settings.max_concurrent_models,
            max_memory_bytes=mebibytes * MIB if mebibytes else default_max_memory_bytes(),
            cleanup_interval_seconds=_monitoring_seconds(settings, settings.memory_cleanup_interval_ms),
            environment=worker_environment(),
        )
    )
    return Registration(provider, "hf", ("huggingface",), enabled=enabled)


def _claude(settings: Settings) -> Registration:
    endpoint = settings.endpoints["claude"]
    silence_seconds = settings.stream_timeout_ms / 1000
    provider = Anthropic(
        AnthropicSettings(
            endpoint.base_url or ANTHROPIC_URL,
            endpoint.key,
            first_token_timeout_seconds=silence_seconds,
            stream_timeout_seconds=silence_seconds,
        )
    )
    return Registration(provider, "claude", ALIASES["claude"], configured=endpoint.is_configured)


def _gemini(settings: Settings) -> Registration:
    endpoint = settings.endpoints["gemini"]
    silence_seconds = settings.stream_timeout_ms / 1000
    provider = Gemini(
        GeminiSettings(
            endpoint.base_url or GEMINI_URL,
            endpoint.key,
            first_token_timeout_seconds=silence_seconds,
            stream_timeout_seconds=silence_seconds,
        )
    )
    return Registration(provider, "gemini", configured=endpoint.is_configured)


def _openai(settings: Settings, name: str, dialect: Dialect) -> Registration:
    endpoint = settings.endpoints[name]
    silence_seconds = settings.stream_timeout_ms / 1000
    provider = OpenAI(
        OpenAISettings(
            name,
            endpoint.base_url or dialect.base_url,
            dialect,
            api_key=endpoint.key,
            known_models=endpoint.models,
            first_token_timeout_seconds=silence_seconds,
            stream_timeout_seconds=silence_seconds,
        )
    )
    return Registration(provider, name, ALIASES.get(name, ()), configured=endpoint.is_configured)


def _registrations(settings: Settings, runtime_dir: Path) -> list[Registration]:
    """In priority order; who is not named there comes last. The scripted one is a tool for rehearsals: it
    shows only where somebody asked for it."""
    silence_seconds = settings.stream_timeout_ms / 1000
    ollama = OllamaSettings(
        settings.ollama_host.get_secret_value(),
        first_token_timeout_seconds=silence_seconds,
        stream_timeout_seconds=silence_seconds,
    )
    registrations = [
        Registration(Ollama(ollama), "ollama", enabled=settings.ollama_enabled),
        _huggingface(settings, runtime_dir),
        _claude(settings),
        _gemini(settings),
        # Most others pass over the limit of a reply's length by the name that it has at OpenAI.
        _openai(settings, "openai", Dialect(OPENAI.title) if settings.openai_base_url else OPENAI),
        _openai(settings, "hf-router", HF_ROUTER),
        *(_openai(settings, name, Dialect(name)) for name in settings.named_endpoints),
    ]
    if settings.scripted:
        registrations.append(
            Registration(Scripted(ReplyLimits(silence_seconds, silence_seconds)), "scripted")
        )
    order = (*settings.model_provider_priority, *PROVIDERS, *settings.named_endpoints)
    return sorted(registrations, key=lambda registration: order.index(registration.provider.name))


def _data_dir(settings: Settings) -> Path:
    """Created when missing, for this user alone. Raises SettingsError."""
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        problem = f"PARLEY_DATA_DIR is {str(settings.data_dir)!r}: {error.strerror}"
        raise SettingsError([problem]) from error
    return settings.data_dir


@contextmanager
def _runtime_folder(data_dir: Path) -> Iterator[Path]:
    """A folder of this user's alone with a path that is short enough for sockets in it."""
    folder = data_dir / "run"
    if len(os.fsencode(folder)) <= _SOCKET_FOLDER_BYTES:
        folder.mkdir(mode=0o700, exist_ok=True)
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="parley-") as name:
            yield Path(name)
