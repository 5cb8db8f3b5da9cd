"""Migrations: once, whole or not at all, from an installed wheel too, and never backwards."""

import asyncio
import logging
import shutil
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import uuid4

import pytest
from alembic.script import ScriptDirectory

import db.migrations
from db.database import Database, DatabaseMisconfigured, DatabaseUnavailable
from db.migrations.runner import MigrationFailed, is_migrated, migrate
from db.schema import dump
from tests.conftest import url_of

_ROOT = Path(__file__).parents[2]


@pytest.fixture
async def empty_url(postgres: str, postgres_pool: Database) -> AsyncGenerator[str]:
    """The URL of a database without any table."""
    name = f"empty_{uuid4().hex}"
    await postgres_pool.execute(f"CREATE DATABASE {name}")
    yield url_of(postgres, name)
    await postgres_pool.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def empty(empty_url: str) -> AsyncGenerator[Database]:
    async with Database.open(empty_url) as database:
        yield database


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A copy of the migrations, to add to."""
    assert db.migrations.__file__ is not None
    copy = tmp_path / "migrations"
    shutil.copytree(Path(db.migrations.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def _newest() -> str:
    head = ScriptDirectory(str(Path(db.migrations.__file__ or "").parent)).get_current_head()
    assert head
    return head


def _add(scripts: Path, *statements: str) -> None:
    """One more migration: ``newer``."""
    (scripts / "versions" / "newer.py").write_text(
        "from alembic import op\n"
        f"revision, down_revision = 'newer', {_newest()!r}\n"
        "def upgrade():\n" + "".join(f"    op.execute({statement!r})\n" for statement in statements)
    )


async def test_an_empty_database(empty: Database, empty_url: str) -> None:
    assert not await is_migrated(empty)
    await migrate(empty_url)
    assert await is_migrated(empty)
    await empty.execute("INSERT INTO conversations (id, viewer_id) VALUES (gen_random_uuid(), 'me')")
    await migrate(empty_url)
    assert await empty.fetchval("SELECT count(*) FROM conversations") == 1


async def test_the_other_form_of_the_url(empty: Database, empty_url: str) -> None:
    await migrate(empty_url.replace("postgresql://", "postgres://"))
    assert await is_migrated(empty)


async def test_ten_servers_migrate_once(empty: Database, empty_url: str) -> None:
    await asyncio.gather(*(migrate(empty_url) for _ in range(10)))
    assert await is_migrated(empty)
    assert await empty.fetchval("SELECT count(*) FROM alembic_version") == 1


async def test_a_failing_migration_leaves_everything_as_it_was(
    database: Database, database_url: str, scripts: Path
) -> None:
    before = await dump(database_url)
    _add(scripts, "CREATE TABLE more (id int)", "ALTER TABLE conversations DROP COLUMN title", "SELEKT")
    with pytest.raises(MigrationFailed, match="SELEKT"):
        await migrate(database_url, str(scripts))
    assert await dump(database_url) == before
    assert await is_migrated(database)


async def test_a_failing_first_migration_leaves_nothing(
    empty: Database, empty_url: str, scripts: Path
) -> None:
    _add(scripts, "SELECT 1/0")
    with pytest.raises(MigrationFailed, match="division by zero"):
        await migrate(empty_url, str(scripts))
    assert await empty.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0


async def test_a_newer_database_is_refused(database: Database, database_url: str, scripts: Path) -> None:
    _add(scripts, "CREATE TABLE more (id int)")
    await migrate(database_url, str(scripts))
    with pytest.raises(MigrationFailed, match=rf"revision newer.*newest is {_newest()}.*newer version"):
        await migrate(database_url)
    assert await database.fetchval("SELECT to_regclass('more') IS NOT NULL") is True


async def test_a_server_goes_on_while_a_newer_one_migrates(
    database: Database, database_url: str, scripts: Path
) -> None:
    """D1: replicas are replaced one by one."""
    _add(scripts, "CREATE TABLE more (id int)")
    await migrate(database_url, str(scripts))
    assert await is_migrated(database)
    await database.execute("UPDATE alembic_version SET version_num = '0001'")
    assert not await is_migrated(database)
    await database.execute("DELETE FROM alembic_version")
    assert not await is_migrated(database)


async def test_no_database_to_migrate(postgres: str, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        await migrate(f"postgresql://parley@/parley?host={tmp_path}")
    with pytest.raises(DatabaseMisconfigured):
        await migrate(url_of(postgres, "nowhere"))
    with pytest.raises(DatabaseMisconfigured):
        await migrate("postgresql://h:port/x")


async def test_the_logging_of_the_application_stays(empty_url: str) -> None:
    def state() -> object:
        loggers = [logging.getLogger(), logging.getLogger("alembic"), logging.getLogger("sqlalchemy")]
        return [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers]

    before = state()
    await migrate(empty_url)
    assert state() == before


async def test_the_command_line_of_alembic(empty: Database, empty_url: str) -> None:
    await _run(_ROOT, sys.executable, "-m", "alembic", "-x", f"url={empty_url}", "upgrade", "head")
    assert await is_migrated(empty)
    output = await _run(_ROOT, sys.executable, "-m", "alembic", "-x", f"url={empty_url}", "current")
    assert f"{_newest()} (head)" in output


async def test_a_new_migration_is_made_from_the_template(database_url: str, scripts: Path) -> None:
    settings = (_ROOT / "alembic.ini").read_text().replace("db:migrations", str(scripts))
    (scripts.parent / "alembic.ini").write_text(settings)
    command = (sys.executable, "-m", "alembic", "revision", "--rev-id", "9999", "-m", "Some more")
    await _run(scripts.parent, *command)
    assert (scripts / "versions" / "9999_some_more.py").read_text().startswith('"""Some more."""\n')
    await migrate(database_url, str(scripts))


async def test_the_wheel_carries_its_migrations(empty: Database, empty_url: str, tmp_path: Path) -> None:
    build = (
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        ".",
        str(_ROOT),
    )
    await _run(tmp_path, sys.executable, *build)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")
    program = (
        "import asyncio, sys, db; from db.migrations.runner import migrate; print(db.__file__);"
        "asyncio.run(migrate(sys.argv[1]))"
    )
    output = await _run(tmp_path / "installed", sys.executable, "-c", program, empty_url)
    assert output.startswith(str(tmp_path))
    assert await is_migrated(empty)


async def _run(directory: Path, *command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, cwd=directory, stdout=PIPE, stderr=STDOUT)
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()
