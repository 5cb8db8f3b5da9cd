"""The application with all its parts, on a real Postgres."""

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from db.database import Database, DatabaseError
from server.app import Parts, create_app, open_registry
from server.settings import Settings, read_settings
from tests.conftest import url_of
from tests.server.live import live


def _settings(folder: Path, **values: object) -> Settings:
    return read_settings(
        {
            "PARLEY_DATA_DIR": str(folder),
            "HUGGINGFACE_MODELS_PATH": str(folder / "models"),
            "OLLAMA_HOST": "127.0.0.1:9",
            "PARLEY_SCRIPTED": True,
            **values,
        }
    )


@asynccontextmanager
async def _client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        live(app) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        yield client


@pytest.fixture
async def app(tmp_path: Path, database_url: str) -> Starlette:
    return create_app(_settings(tmp_path, DATABASE_URL=database_url))


async def test_it_answers_by_the_schema(app: Starlette) -> None:
    query = '{ availableModels(provider: "scripted") { name } }'
    async with _client(app) as client:
        response = await client.post("/graphql", json={"query": query})
    assert {"name": "scripted:history"} in response.json()["data"]["availableModels"]


async def test_nothing_is_run_over_get(app: Starlette) -> None:
    subscription = 'subscription { streamMessage(input: {message: "a", model: "scripted:echo"}) { seq } }'
    async with _client(app) as client:
        for document in (subscription, "{ providers { name } }"):
            response = await client.get("/graphql", params={"query": document})
            assert response.status_code == 405
        parts: Parts = app.state.parts
        assert await parts.database.fetchval("SELECT count(*) FROM generations") == 0


async def test_every_path_is_guarded(app: Starlette) -> None:
    async with _client(app) as client:
        for path in ("/graphql", "/health/live", "/health/ready", "/nowhere"):
            assert (await client.post(path, headers={"Host": "evil.example"})).status_code == 403
            assert (await client.get(path, headers={"Origin": "https://evil.example"})).status_code == 403


async def test_ready_follows_the_database(app: Starlette, database_url: str, postgres_pool: Database) -> None:
    name = database_url.rpartition("/")[2].partition("?")[0]
    assert url_of(database_url, name) == database_url
    async with _client(app) as client:
        assert (await client.get("/health/ready")).status_code == 200
        await postgres_pool.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await postgres_pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        away = await client.get("/health/ready")
        assert (away.status_code, away.json()["parts"]["database"]) == (503, "unavailable")
        assert (await client.get("/health/live")).status_code == 200
        await postgres_pool.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert (await client.get("/health/ready")).status_code == 200


async def test_ready_tells_a_schema_of_another_version(app: Starlette) -> None:
    async with _client(app) as client:
        parts: Parts = app.state.parts
        await parts.database.execute("UPDATE alembic_version SET version_num = '9999'")
        response = await client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["parts"] == {"database": "ready", "schema": "unavailable"}


async def test_a_failed_migration_refuses_to_start(app: Starlette, database: Database) -> None:
    await database.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseError, match="9999"):
        async with app.router.lifespan_context(app):
            pass


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ["ollama", "huggingface", "scripted"]),
        ({"MODEL_PROVIDER_PRIORITY": "scripted,huggingface"}, ["scripted", "huggingface", "ollama"]),
        ({"HUGGINGFACE_ENABLED": False, "PARLEY_SCRIPTED": False}, ["ollama"]),
    ],
)
async def test_providers_come_in_their_priority(
    values: dict[str, object], expected: list[str], tmp_path: Path
) -> None:
    async with open_registry(_settings(tmp_path, **values)) as registry:
        assert [each.provider.name for each in registry] == expected


async def test_local_models_answer_to_both_names(tmp_path: Path) -> None:
    async with open_registry(_settings(tmp_path)) as registry:
        assert registry.by_prefix("hf") is registry.by_prefix("huggingface") is registry["huggingface"]
        assert registry["huggingface"].full_name("x") == "hf:x"


async def test_sockets_lie_in_the_data_directory_where_its_path_is_short(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("d")
    async with open_registry(_settings(folder)):
        assert stat.S_IMODE((folder / "run").stat().st_mode) == 0o700


async def test_sockets_lie_elsewhere_where_it_is_long(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    async with open_registry(_settings(folder)):
        assert not (folder / "run").exists()
