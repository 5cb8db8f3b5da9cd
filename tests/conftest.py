"""Fixtures that every part of the tests may use: a real Postgres, and a fresh database of it per test."""

import itertools
import socket
from collections.abc import AsyncGenerator, Iterator
from urllib.parse import urlsplit, urlunsplit

import hypothesis
import pytest

from db.bell import Bell
from db.database import Database, PoolLimits
from db.embedded import EmbeddedOptions, embedded_postgres
from db.migrations.runner import migrate

_numbers = itertools.count(1)

hypothesis.settings.register_profile("long", max_examples=10_000, deadline=None)
_VENDORS = ("ANTHROPIC", "GEMINI", "OPENAI")
_KEYS = (*(f"{vendor}_{what}" for vendor in _VENDORS for what in ("API_KEY", "BASE_URL")), "HF_TOKEN")


@pytest.fixture(scope="session", autouse=True)
def _no_keys() -> Iterator[None]:
    """The keys of whoever runs the tests are for no test: none may ask a vendor, nor have it paid."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _KEYS:
            patch.delenv(name, raising=False)
        yield


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


@pytest.fixture
async def bell(database_url: str) -> AsyncGenerator[Bell]:
    """The bell of that database."""
    async with Bell.listening(database_url) as bell:
        yield bell


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
