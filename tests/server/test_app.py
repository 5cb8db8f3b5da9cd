"""The application with all its parts, on a real Postgres."""

import json
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from db.database import Database, DatabaseError
from providers.base import GenerationOptions
from server.app import Parts, create_app, open_registry
from server.settings import Settings, SettingsError, read_settings
from tests.conftest import url_of
from tests.graphql_client import Failed, GraphQLClient
from tests.providers.conftest import chat, outcome
from tests.providers.huggingface.tiny_models import write_reciter
from tests.providers.replay import answer, replay_server
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


@asynccontextmanager
async def _asking(app: Starlette) -> AsyncIterator[GraphQLClient]:
    async with _client(app) as http:
        client = GraphQLClient(f"{http.base_url}/graphql")
        async with client.http:
            yield client


HOSTED = ["claude", "gemini", "openai", "hf-router"]
PROVIDERS = "{ providers { name enabled configured health { status lastError } models { name state } } }"
SEND = 'mutation ($model: String!) { sendMessage(input: {message: "a", model: $model}) { id } }'
MODELS = "{ availableModels { name state } }"


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


async def test_ready_tells_a_schema_that_lacks_migrations(app: Starlette) -> None:
    async with _client(app) as client:
        parts: Parts = app.state.parts
        await parts.database.execute("UPDATE alembic_version SET version_num = '0001'")
        response = await client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["parts"] == {"database": "ready", "schema": "unavailable", "engine": "ready"}


async def test_a_failed_migration_refuses_to_start(app: Starlette, database: Database) -> None:
    await database.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseError, match="9999"):
        async with app.router.lifespan_context(app):
            pass


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ["ollama", "huggingface", *HOSTED, "scripted"]),
        (
            {"MODEL_PROVIDER_PRIORITY": "scripted,gemini"},
            ["scripted", "gemini", "ollama", "huggingface", "claude", "openai", "hf-router"],
        ),
        ({"PARLEY_SCRIPTED": False}, ["ollama", "huggingface", *HOSTED]),
    ],
)
async def test_providers_come_in_their_priority(
    values: dict[str, object], expected: list[str], tmp_path: Path
) -> None:
    async with open_registry(_settings(tmp_path, **values)) as registry:
        assert [each.provider.name for each in registry] == expected


async def test_names_that_people_may_type(tmp_path: Path) -> None:
    """P2. No server of one's own may have any of them."""
    async with open_registry(_settings(tmp_path)) as registry:
        for alias, name in {"hf": "huggingface", "codex": "openai", "anthropic": "claude"}.items():
            assert registry.by_prefix(alias) is registry[name]
        names = {name for owner in registry for name in (owner.provider.name, owner.prefix, *owner.aliases)}
    for name in (name.replace("-", "_") for name in names):
        with pytest.raises(SettingsError, match=f"the name {name} is taken"):
            _settings(tmp_path, **{f"PARLEY_PROVIDER_{name.upper()}_BASE_URL": "http://127.0.0.1:9"})


async def test_a_named_server_is_a_provider(tmp_path: Path) -> None:
    """P1."""
    async with replay_server() as server:
        server.answers["/v1/models"] = (answer({"data": [{"id": "m"}]}),)
        settings = _settings(
            tmp_path,
            MODEL_PROVIDER_PRIORITY="box",
            DEFAULT_MODEL_PROVIDER="box",
            PARLEY_PROVIDER_BOX_BASE_URL=f"{server.url}/v1",
            PARLEY_PROVIDER_BOX_API_KEY="box-key",
            PARLEY_PROVIDER_BOX_DEFAULT_MODEL="n",
            OPENAI_API_KEY="openai-key",
        )
        async with open_registry(settings) as registry:
            first, *_ = registry
            assert first is registry["box"] is registry.by_prefix("box")
            models = await registry.models("box")
            assert [first.full_name(info.name) for info in models] == ["box:m", "box:n"]
            assert registry["openai"].configured
        assert {request.headers["authorization"] for request in server.received} == {"Bearer box-key"}


async def test_another_server_in_the_place_of_openai_is_told_how_long_a_reply_may_be(tmp_path: Path) -> None:
    """P2. Most such servers know one name of the limit alone, and what they list are not OpenAI's names."""
    async with replay_server() as server:
        server.answers["/v1/models"] = (answer({"data": [{"id": "llama3.2:1b-instruct-q4_K_M"}]}),)
        settings = _settings(tmp_path, OPENAI_BASE_URL=f"{server.url}/v1")
        async with open_registry(settings) as registry:
            (info,) = await registry.models("openai")
            options = GenerationOptions(max_tokens=8)
            await outcome(registry["openai"].provider.stream(chat(info.name, options=options)))
        body = json.loads(server.received[-1].body)
    assert body["max_tokens"] == 8
    assert "max_completion_tokens" not in body


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


async def test_what_is_disabled_is_shown_and_never_asked(tmp_path: Path, database_url: str) -> None:
    folder = tmp_path / "models"
    settings = _settings(
        tmp_path,
        DATABASE_URL=database_url,
        HUGGINGFACE_ENABLED=False,
        OLLAMA_ENABLED=False,
        DEFAULT_MODEL_PROVIDER="scripted",
    )
    async with _asking(create_app(settings)) as client:
        *providers, scripted = await client.ask(PROVIDERS)
        off = [provider for provider in providers if not provider["enabled"]]
        for provider, name in zip(off, ("ollama", "huggingface"), strict=True):
            assert provider == {
                "name": name,
                "enabled": False,
                "configured": True,
                "health": {"status": "UNKNOWN", "lastError": None},
                "models": [],
            }
        assert (scripted["enabled"], scripted["health"]["status"]) == (True, "UP")
        for name in ("hf:any", "ollama:any"):
            with pytest.raises(Failed) as failed:
                await client.ask(SEND, model=name)
            assert failed.value.code == "MODEL_NOT_FOUND"
            assert "is disabled on this server" in failed.value.message
    assert not folder.exists()


async def test_who_has_no_key_is_shown_and_never_asked(tmp_path: Path, database_url: str) -> None:
    """P2: listed as not configured, and nothing fails."""
    settings = _settings(tmp_path, DATABASE_URL=database_url)
    async with _asking(create_app(settings)) as client:
        hosted = [each for each in await client.ask(PROVIDERS) if each["name"] in HOSTED]
        assert hosted == [
            {
                "name": name,
                "enabled": True,
                "configured": False,
                "health": {"status": "UNKNOWN", "lastError": None},
                "models": [],
            }
            for name in HOSTED
        ]
        for name in ("anthropic:any", "gemini:any", "openai:any", "codex:any", "hf-router:any"):
            with pytest.raises(Failed, match="is not configured on this server") as failed:
                await client.ask(SEND, model=name)
            assert failed.value.code == "MODEL_NOT_FOUND"


async def test_keys_go_to_their_own_servers(tmp_path: Path) -> None:
    """And are what makes a provider one to ask."""
    async with replay_server() as server:
        for path in ("/v1/models?limit=1000", "/v1/models?limit=1"):
            server.answers[path] = (answer({"data": [{"id": "claude-x"}]}),)
        for path in ("/v1beta/models?pageSize=1000", "/v1beta/models?pageSize=1"):
            gemini = {"name": "models/gemini-x", "supportedGenerationMethods": ["generateContent"]}
            server.answers[path] = (answer({"models": [gemini]}),)
        settings = _settings(
            tmp_path,
            ANTHROPIC_API_KEY="sk-ant-one",
            ANTHROPIC_BASE_URL=server.url,
            GEMINI_API_KEY="AIza-two",
            GEMINI_BASE_URL=server.url,
        )
        async with open_registry(settings) as registry:
            assert [info.name for info in await registry.models("claude")] == ["claude-x"]
            assert [info.name for info in await registry.models("gemini")] == ["gemini-x"]
            assert registry.by_prefix("anthropic") is registry["claude"]
        keys = [
            (request.path[:7], request.headers.get("x-api-key"), request.headers.get("x-goog-api-key"))
            for request in server.received
        ]
    assert set(keys) == {("/v1/mod", "sk-ant-one", None), ("/v1beta", None, "AIza-two")}


async def test_an_unreadable_models_path_is_told_and_the_others_are_listed(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """M2, M3: the configured path cannot be used, and the default neither."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    default = tmp_path / "models/huggingface"
    default.touch()
    settings = _settings(tmp_path, DATABASE_URL=database_url, HUGGINGFACE_MODELS_PATH="/proc/models")
    async with _asking(create_app(settings)) as client:
        names = [model["name"] for model in await client.ask(MODELS)]
        (local,) = [each for each in await client.ask(PROVIDERS) if each["name"] == "huggingface"]
    assert "scripted:history" in names
    told = f"The models path {default} cannot be read: Not a directory."
    assert local["health"] == {"status": "DOWN", "lastError": told}
    assert f"provider huggingface is down: {told}" in caplog.text
    assert "HUGGINGFACE_MODELS_PATH /proc/models cannot be used" in caplog.text


async def test_a_black_hole_delays_no_list(tmp_path: Path, database_url: str, black_hole: str) -> None:
    """M4: nobody waits for it once it is known to be down. How long a list takes then, and at the very first
    time, is what ``benchmarks.model_list`` measures."""
    settings = _settings(
        tmp_path, DATABASE_URL=database_url, OLLAMA_HOST=black_hole, ENABLE_MODEL_MONITORING=False
    )
    write_reciter(tmp_path / "models/one", "Hi")
    async with _asking(create_app(settings)) as client:
        cold = await client.ask(MODELS)
        began = time.monotonic()
        for _ in range(20):
            assert await client.ask(MODELS) == cold
        assert time.monotonic() - began < 10  # each would wait 1.5 s for a connection
        ollama, local, *_ = await client.ask(PROVIDERS)
    assert {"name": "hf:one", "state": "COLD"} in cold
    assert ollama["health"]["status"] == "DOWN"
    assert "cannot be reached" in ollama["health"]["lastError"] or "did not" in ollama["health"]["lastError"]
    assert local["health"] == {"status": "UP", "lastError": None}


async def test_models_are_loaded_and_unloaded(tmp_path: Path, database_url: str) -> None:
    """C10: warming up."""
    write_reciter(tmp_path / "models/one", "abca", window=100_000)
    (tmp_path / "models/bad").mkdir()
    (tmp_path / "models/bad/config.json").write_text("{")
    settings = _settings(
        tmp_path, DATABASE_URL=database_url, PARLEY_HUGGINGFACE_THREADS=1, HUGGINGFACE_DEVICE="cpu"
    )
    async with _asking(create_app(settings)) as client:

        async def order(verb: str, name: str) -> str:
            answer = await client.ask(f'mutation {{ {verb}Model(name: "{name}") {{ name state }} }}')
            return f"{answer['name']} {answer['state']}"

        assert await order("unload", "one") == "hf:one COLD"
        assert await order("load", "one") == "hf:one READY"
        generation = await client.ask(SEND, model="hf:one")
        async with client.socket() as socket:
            watching = await socket.subscribe(
                "subscription ($id: ID!) { generation(id: $id) { __typename } }", id=generation["id"]
            )
            await watching.until("TextDelta")
        for verb, name, code in (
            ("unload", "hf:one", "CONFLICT"),
            ("load", "hf:bad", "MODEL_LOAD_FAILED"),
            ("load", "hf:none", "MODEL_NOT_FOUND"),
            ("load", "scripted:history", "CAPABILITY_MISSING"),
            ("unload", "scripted:history", "CAPABILITY_MISSING"),
        ):
            with pytest.raises(Failed) as failed:
                await order(verb, name)
            assert failed.value.code == code
        stop = "mutation ($id: ID!) { stopGeneration(id: $id) { status } }"
        assert await client.ask(stop, id=generation["id"]) == {"status": "STOPPED"}
        assert await order("unload", "hf:one") == "hf:one COLD"


async def test_it_is_not_ready_while_it_drains(app: Starlette) -> None:
    async with _client(app) as client:
        assert (await client.get("/health/ready")).status_code == 200
        await app.state.parts.drain()
        response = await client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["parts"] == {"database": "ready", "schema": "ready", "engine": "unavailable"}


async def test_the_limits_of_a_reply_are_settings(tmp_path: Path, database_url: str) -> None:
    limits = {"PARLEY_DEFAULT_MAX_TOKENS": 3, "PARLEY_MAX_TOKENS": 5}
    send = """
    mutation ($maxTokens: Int) {
      addMessage(input: {
        message: "a", model: "scripted:words 9", options: {maxTokens: $maxTokens}
      }) { content }
    }
    """
    async with _asking(create_app(_settings(tmp_path, DATABASE_URL=database_url, **limits))) as client:
        assert (await client.ask(send))["content"] == "w1 w2 w3"
        assert (await client.ask(send, maxTokens=5))["content"] == "w1 w2 w3 w4 w5"
        with pytest.raises(Failed, match="maxTokens is 6; it must be from 1 to 5"):
            await client.ask(send, maxTokens=6)
