"""schema.sql is what the migrations make, and every statement of ``db`` fits it."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import db
from db.database import Database
from db.schema import SCHEMA_FILE, dump
from tests.conftest import url_of

_METHODS = {"fetch", "fetchrow", "fetchval", "execute", "executemany"}


def _statements() -> Iterator[object]:
    for module_info in pkgutil.iter_modules(db.__path__, "db."):
        module = importlib.import_module(module_info.name)
        for number, statement in _statements_of(module):
            yield pytest.param(statement, id=f"{module_info.name}:{number}")


def _statements_of(module: ModuleType) -> Iterator[tuple[int, str]]:
    """Every call that runs SQL: its line, and the SQL, which is composed of constants of the module."""
    assert module.__file__ is not None
    for call in ast.walk(ast.parse(Path(module.__file__).read_text())):
        match call:
            case ast.Call(
                func=ast.Attribute(attr=method), args=[ast.Constant() | ast.JoinedStr() as sql, *_]
            ):
                if method in _METHODS:
                    code = compile(ast.Expression(sql), module.__file__, "eval")
                    yield call.lineno, eval(code, vars(module))  # noqa: S307 - our own source


@pytest.mark.parametrize("statement", list(_statements()))
async def test_every_statement_fits_the_schema(database: Database, statement: str) -> None:
    async with database.transaction() as connection:
        await connection.prepare(statement)


def test_the_statements_are_found() -> None:
    assert len(list(_statements())) > 20


async def test_schema_sql_is_what_the_migrations_make(database_url: str) -> None:
    assert await dump(database_url) == SCHEMA_FILE.read_text(), "run python -m db.schema"


async def test_schema_sql_is_complete(postgres: str, postgres_pool: Database) -> None:
    await postgres_pool.execute("CREATE DATABASE from_schema_sql")
    url = url_of(postgres, "from_schema_sql")
    async with Database.open(url) as database:
        await database.execute(SCHEMA_FILE.read_text())
    assert await dump(url) == SCHEMA_FILE.read_text()
    await postgres_pool.execute("DROP DATABASE from_schema_sql")
