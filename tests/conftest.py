"""Fixtures that every part of the tests may use: a real Postgres, and a fresh database of it per test."""

import itertools
import socket
from collections.abc import AsyncGenerator, Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest

from db.database import Database, PoolLimits
from db.embedded import EmbeddedOptions, embedded_postgres
from db.migrations.runner import migrate

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
async def postgres(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[str]:
    """The URL of an empty database on a Postgres of this test run; its login may create others."""
    async with embedded_postgres(tmp_path_factory.mktemp("postgres"), EmbeddedOptions(durable=False)) as url:
        yield url


@pytest.fixture(scope="session")
async def postgres_pool(postgres: str) -> AsyncGenerator[Database]:
    """That Postgres, to create and drop databases with."""
    async with Database.open(postgres, PoolLimits(max_size=2)) as database:
        yield database


@pytest.fixture(scope="session")
async def migrated_template(postgres: str, postgres_pool: Database) -> str:
    """The name of a migrated database, to clone."""
    await postgres_pool.execute("CREATE DATABASE migrated")
    await migrate(url_of(postgres, "migrated"))
    return "migrated"


@pytest.fixture
async def database_url(postgres: str, postgres_pool: Database, migrated_template: str) -> AsyncGenerator[str]:
    """The URL of a fresh, migrated, empty database."""
    name = f"test_{next(_numbers)}"
    await postgres_pool.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template} STRATEGY file_copy")
    yield url_of(postgres, name)
    await postgres_pool.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    """Connections to a fresh, migrated, empty database."""
    async with Database.open(database_url) as database:
        yield database


def url_of(url: str, name: str) -> str:
    """The same server and login, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A port whose queue is full and where nobody accepts: connecting to it never ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}"
        for connection in waiting:
            connection.close()
