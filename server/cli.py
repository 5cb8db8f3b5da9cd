"""The ``parley`` command: serve, migrate, models, pull."""

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import asdict
from importlib.metadata import version
from typing import TypeVar

import uvloop

from db.database import DatabaseError
from db.migrations.runner import migrate
from providers.base import ChatMessage, ChatRequest, GenerationOptions, ModelInfo, PhaseChanged, Role
from providers.errors import ProviderError
from providers.registry import HealthStatus, Registration, Registry
from server import demo
from server.app import create_app, database_url, open_registry
from server.listener import Listener, ListenError, bind
from server.settings import Settings, SettingsError, read_settings
from server.telemetry import configure_logging

T = TypeVar("T")
Command = Callable[[Settings, argparse.Namespace], int]

_FAILED = 1
_MISUSED = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 done, 1 failed, 2 misused or wrongly configured."""
    options = _parser().parse_args(arguments)
    configure_logging("warning")  # for what reading the settings has to tell
    overrides = {name: value for name, value in vars(options).items() if name.isupper() and value is not None}
    try:
        settings = read_settings(overrides)
        configure_logging("error")
        run: Command = options.run
        return run(settings, options)
    except SettingsError as error:
        return _fail(_MISUSED, "the settings are wrong:", *error.problems)
    except (DatabaseError, ListenError, ProviderError, demo.InstallError) as error:
        return _fail(_FAILED, str(error))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # `parley models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED


def _parser() -> argparse.ArgumentParser:
    """Options in capitals override the setting of that name."""
    parser = argparse.ArgumentParser(prog="parley", description="A GraphQL chat server for language models.")
    parser.add_argument("--version", action="version", version=f"parley {version('parley')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--data-dir", dest="PARLEY_DATA_DIR", metavar="DIR", help="default: ./.parley")

    serve = commands.add_parser("serve", parents=[data], help="run the server")
    serve.add_argument("--host", dest="PARLEY_HOST", help="a loopback address; default: 127.0.0.1")
    serve.add_argument("--port", dest="PARLEY_PORT", help="0 takes any free one; default: 8000")
    serve.set_defaults(run=_serve)

    migration = commands.add_parser("migrate", parents=[data], help="bring the database to this version")
    migration.set_defaults(run=_migrate)

    models = commands.add_parser("models", parents=[data], help="list the models that could answer")
    models.add_argument("--provider", help="only this provider's")
    models.add_argument("--json", action="store_true", help="one JSON object per line")
    models.set_defaults(run=_models)

    pull = commands.add_parser("pull", parents=[data], help="install a model")
    pull.add_argument("model", choices=["demo"], help=f"demo: {demo.NAME}")
    pull.set_defaults(run=_pull)
    return parser


def _serve(settings: Settings, _: argparse.Namespace) -> int:
    configure_logging(settings.log_level)
    # Before anything slow, so that a taken port is told at once.
    with bind(settings.host, settings.port) as listener:
        _offer_demo(settings)
        return _run(_listen(settings, listener))


async def _listen(settings: Settings, listener: socket.socket) -> int:
    app = create_app(settings)

    async def drain() -> None:
        print("Stopping: replies have a moment to end. Ctrl-C ends them at once.", flush=True)
        await app.state.parts.drain()

    async with app.router.lifespan_context(app):
        server = Listener(app, lambda: _announce(settings, listener), drain, app.state.closing)
        await server.listen(listener)
    return 0


def _announce(settings: Settings, listener: socket.socket) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    print(f"Parley is ready: {url}   (GraphQL at {url}/graphql, Ctrl-C stops it)", flush=True)


def _offer_demo(settings: Settings) -> None:
    """Where nobody has a local model yet: ask, or say how to get one."""
    if not settings.huggingface_enabled:
        return
    path = settings.usable_models_path()
    try:
        if any(path.iterdir()):
            return
    except OSError:  # the provider's health says what is wrong
        return
    print(f"There is no model in {path} yet.")
    if not sys.stdin.isatty():
        print("`parley pull demo` installs a small one.", flush=True)
    elif _agreed(f"Install the demo model {demo.NAME} ({demo.MEGABYTES} MB)?"):
        _install_demo(settings)


def _agreed(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _migrate(settings: Settings, _: argparse.Namespace) -> int:
    async def run() -> int:
        async with database_url(settings) as url:
            await migrate(url)
        print("The database is up to date.")
        return 0

    return _run(run())


def _models(settings: Settings, options: argparse.Namespace) -> int:
    async def run() -> int:
        async with open_registry(settings) as registry:
            return await _list_models(registry, options.provider, as_json=options.json)

    return _run(run())


async def _list_models(registry: Registry, only: str | None, *, as_json: bool) -> int:
    owner = registry.get(only) if only else None
    if only and owner is None:
        names = ", ".join(each.provider.name for each in registry)
        return _fail(_MISUSED, f"there is no provider {only!r}; there are {names}")
    listed = await registry.all_models(refresh=True)
    chosen = [(each, info) for each, info in listed if owner in (None, each)]
    if as_json:
        for each, info in chosen:
            facts = {"name": each.full_name(info.name), "provider": each.provider.name}
            print(json.dumps(asdict(info) | facts, default=str))
    else:
        _print_table([_HEADINGS, *(_row(each, info) for each, info in chosen)])
    for each in registry:
        health = registry.health(each.provider.name)
        if health.status is HealthStatus.DOWN and owner in (None, each):
            print(f"{each.provider.name}: {health.last_error}", file=sys.stderr)
    return 0


_HEADINGS = ("NAME", "SIZE", "PARAMETERS", "CONTEXT", "ARCHITECTURE", "STATE")


def _row(owner: Registration, info: ModelInfo) -> tuple[str, ...]:
    facts = info.metadata
    return (
        owner.full_name(info.name),
        f"{facts.size_bytes / 1e6:,.0f} MB" if facts.size_bytes else "",
        f"{facts.parameters / 1e6:,.1f} M" if facts.parameters else "",
        f"{info.capabilities.max_context_tokens or ''}",
        facts.architecture or "",
        info.state.value,
    )


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _pull(settings: Settings, _: argparse.Namespace) -> int:
    if not settings.huggingface_enabled:
        return _fail(_MISUSED, "HUGGINGFACE_ENABLED is false, so nothing would find the model")
    if demo.path(settings.usable_models_path()).exists():
        print(f"The demo model {demo.NAME} is already there.")
        return 0
    _install_demo(settings)
    return 0


def _install_demo(settings: Settings) -> None:
    began = time.monotonic()
    demo.install(settings.usable_models_path())
    _run(_try_demo(settings))
    print(f"The demo model hf:{demo.NAME} is ready after {time.monotonic() - began:.0f} s.", flush=True)


async def _try_demo(settings: Settings) -> None:
    """One token of a reply: the weights are converted now and not when somebody waits for an answer."""
    request = ChatRequest(
        demo.NAME, (ChatMessage(Role.USER, "Hello"),), GenerationOptions(temperature=0, max_tokens=1)
    )
    told: str | None = None
    async with (
        open_registry(settings) as registry,
        aclosing(registry["huggingface"].provider.stream(request)) as events,
    ):
        async for event in events:
            if isinstance(event, PhaseChanged) and event.detail not in (None, told):
                told = event.detail
                print(f"  {told}", flush=True)


def _run(work: Coroutine[object, object, T]) -> T:
    """Run to the end in a loop of its own. SIGTERM cancels the work, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(status: int, *lines: str) -> int:
    print("parley:", "\n  ".join(lines), file=sys.stderr)
    return status
