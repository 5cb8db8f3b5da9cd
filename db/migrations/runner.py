"""Brings a database to the schema of this code, once, however many servers start at the same time."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from db.database import Database, DatabaseError, StatementFailed, connecting

if TYPE_CHECKING:
    from sqlalchemy import Connection

SCRIPTS = "db:migrations"  # a package and a folder in it, so that an installed wheel finds them too

_LOCK = 0x7061726C6579  # "parley"; the key of an advisory lock is an application's own choice
_CONNECT_TIMEOUT_SECONDS = 10.0


class MigrationFailed(DatabaseError):
    """The schema could not be brought to this code's revision, and is as it was."""


async def migrate(url: str, scripts: str = SCRIPTS) -> None:
    """Apply every migration that the database lacks, all or none. Raises DatabaseError."""
    try:
        async with locked_transaction(url) as connection:
            await connection.run_sync(_upgrade, _config(scripts))
    except DatabaseError:
        raise
    except Exception as error:
        raise MigrationFailed(f"the database was not migrated: {error}") from error


async def is_migrated(database: Database) -> bool:
    """Whether the database has all the migrations of this code, or is newer: servers of both versions run
    side by side while they are replaced one by one, so a migration only adds."""
    try:
        revision = await database.fetchval("SELECT version_num FROM alembic_version")
    except StatementFailed:  # there is no such table before the first migration
        return False
    return revision is not None and revision not in _outdated()


@asynccontextmanager
async def locked_transaction(url: str) -> AsyncGenerator[AsyncConnection]:
    """One transaction, in which nobody else migrates this database."""

    async def connect() -> "asyncpg.Connection[asyncpg.Record]":
        with connecting():
            return await asyncpg.connect(url, timeout=_CONNECT_TIMEOUT_SECONDS)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        yield connection


def _config(scripts: str) -> Config:
    config = Config()
    config.set_main_option("script_location", scripts)
    return config


def _upgrade(connection: "Connection", config: Config) -> None:
    scripts = ScriptDirectory.from_config(config)
    for revision in MigrationContext.configure(connection).get_current_heads():
        try:
            scripts.get_revision(revision)
        except CommandError as error:
            raise MigrationFailed(
                f"the database is at revision {revision}, which this version of Parley does not know (its "
                f"newest is {scripts.get_current_head()}): a newer version has migrated it; run that one"
            ) from error
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@cache
def _outdated() -> frozenset[str]:
    """The revisions before this code's newest."""
    scripts = ScriptDirectory.from_config(_config(SCRIPTS))
    known = {script.revision for script in scripts.walk_revisions()}
    return frozenset(known - set(scripts.get_heads()))
