"""Imports point one way, at the top of the file, and the server's own process stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "providers", "db")
MAY_IMPORT = {"server": {"server", "providers", "db"}, "providers": {"providers"}, "db": {"db"}}

# Inside server, lowest first: a module imports from the lines above its own.
LAYERS = [
    line.split()
    for line in """
    endpoints
    settings errors telemetry
    events demo listener
    patience pending log_rows tail conversation_events draft meter auth guard
    leases follower watcher monitor purge readers
    stream_log reload context_window
    chat
    deletion
    api rest health
    pages
    app
    cli
    __main__
    """.strip().splitlines()
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}


def _modules() -> dict[str, ast.Module]:
    """Every module of the product under its full name."""
    files = (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    return {_name(file): ast.parse(file.read_text(), str(file)) for file in files}


def _name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = _modules()


def _imports(module: str) -> Iterator[str]:
    """The product's modules that this one imports, wherever in the file that stands."""
    for node in ast.walk(MODULES[module]):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES)
            case ast.ImportFrom(module=str(origin)) if origin.split(".")[0] in PACKAGES:
                for alias in node.names:
                    submodule = f"{origin}.{alias.name}"
                    yield submodule if submodule in MODULES else origin
            case ast.ImportFrom(level=level):
                assert level == 0, f"{module} has a relative import"


def test_there_is_something_to_look_at() -> None:
    assert {"server.chat", "server.app", "providers.base", "db.database"} <= MODULES.keys()
    assert "server.stream_log" in set(_imports("server.chat"))


@pytest.mark.parametrize("module", MODULES)
def test_packages_import_in_one_direction(module: str) -> None:
    allowed = MAY_IMPORT[module.split(".")[0]]
    assert {name for name in _imports(module) if name.split(".")[0] not in allowed} == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("server.")])
def test_the_server_imports_from_lower_layers_only(module: str) -> None:
    own = module.split(".")[1]
    assert own in LEVEL, f"server.{own} has no place in the layers"
    imported = {name.split(".")[1] for name in _imports(module) if name.startswith("server.")} - {own}
    assert {name for name in imported if LEVEL[name] >= LEVEL[own]} == set()


def test_no_cycles() -> None:
    graph = {name: set(_imports(name)) - {name} for name in MODULES}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_imports_stand_at_the_top(module: str) -> None:
    functions = [
        node for node in ast.walk(MODULES[module]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    inside = {
        node.lineno
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert inside == set()


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"server.settings"}))
def test_only_the_settings_read_the_environment(module: str) -> None:
    reads = {
        node.lineno
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}
    }
    assert reads == set()


def test_the_server_process_never_imports_torch() -> None:
    """Loading it takes seconds and half a gigabyte; only the models' own processes need it."""
    program = "import sys, server.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", program]
    imported = set(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split())
    assert {"server", "providers", "db", "strawberry"} <= imported
    assert imported.isdisjoint({"torch", "transformers"})
