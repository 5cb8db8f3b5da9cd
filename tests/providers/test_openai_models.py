"""Lists of models as OpenAI, the Hugging Face router, vLLM, llama.cpp and others give them."""

from datetime import UTC, datetime

import pytest

from providers.base import ModelInfo, ModelState, ModelType, Price
from providers.errors import BadCredentials, ModelNotFound, Unavailable
from providers.openai import HF_ROUTER, HF_ROUTER_MODEL, OPENAI, Dialect, OpenAI, OpenAISettings
from tests.providers.replay import ReplayServer, answer

MODELS = "/v1/models"


async def listed(server: ReplayServer, dialect: Dialect, *models: object) -> dict[str, ModelInfo]:
    server.answers[MODELS] = (answer({"object": "list", "data": models}),)
    provider = provider_at(server.url, dialect)
    await provider.check()
    infos = await provider.models()
    await provider.aclose()
    return {info.name: info for info in infos}


def provider_at(url: str, dialect: Dialect, known_models: tuple[str, ...] = ()) -> OpenAI:
    return OpenAI(OpenAISettings("test", f"{url}/v1", dialect, known_models=known_models))


NAMED = Dialect("Test")
CHAT_MODELS = (
    "gpt-x",
    "gpt-4o-mini",
    "o4-mini",
    "gpt-5.1-chat-latest",
    "gpt-4o-search-preview",
    "ft:gpt-x:me",
)
OTHER_MODELS = (
    *("text-embedding-3-small", "whisper-1", "tts-1-hd", "dall-e-3", "gpt-image-1", "sora-2", "davinci-002"),
    *(
        "omni-moderation-latest",
        "gpt-4o-mini-tts",
        "gpt-4o-transcribe",
        "gpt-4o-realtime-preview",
        "gpt-audio",
    ),
    *("gpt-3.5-turbo-instruct", "gpt-5-codex", "codex-mini-latest", "o1-pro", "o3-deep-research"),
)


async def test_openai_lists_what_chats(server: ReplayServer) -> None:
    models = [
        {"id": name, "object": "model", "created": 1795000000, "owned_by": "openai"}
        for name in (*CHAT_MODELS, *OTHER_MODELS)
    ]
    infos = await listed(server, OPENAI, *models)
    assert tuple(infos) == CHAT_MODELS
    info = infos["gpt-x"]
    assert (info.state, info.type, info.source) == (ModelState.READY, ModelType.CHAT, server.url)
    assert info.metadata.updated_at == datetime(2026, 11, 18, 11, 6, 40, tzinfo=UTC)
    assert (info.capabilities.vision, info.capabilities.max_context_tokens) == (None, None)


async def test_vllm(server: ReplayServer) -> None:
    """Its ``created`` is when it was asked."""
    infos = await listed(server, NAMED, {"id": "org/m", "created": 1795000000, "max_model_len": 8096})
    assert infos["org/m"].capabilities.max_context_tokens == 8096
    assert infos["org/m"].metadata.updated_at is None


@pytest.mark.parametrize("created", [None, "2026-01-01", 1.5, -1, 10**30, True, []])
async def test_a_date_that_is_none(server: ReplayServer, created: object) -> None:
    infos = await listed(server, OPENAI, {"id": "m", "created": created})
    assert infos["m"].metadata.updated_at is None


LIVE = {"provider": "novita", "status": "live", "context_length": 131072, "supports_tools": True}
HOSTS = [
    LIVE | {"pricing": {"input": 0.5, "output": 1.5}},
    {"provider": "together", "context_length": 65536, "pricing": {"input": 0.9, "output": 1.1}},
    {"provider": "down", "status": "error", "context_length": 10, "supports_tools": False},
]
SEEING = {"input_modalities": ["text", "image"], "output_modalities": ["text"]}
ROUTED = {"id": "org/x", "owned_by": "org", "created": 1790000000, "architecture": SEEING, "providers": HOSTS}


async def test_router_list(server: ReplayServer) -> None:
    nobody = ROUTED | {"id": "org/nobody", "providers": [HOSTS[2]]}
    painter = ROUTED | {"id": "org/painter", "architecture": {"output_modalities": ["image"]}}
    bare = {"id": "org/bare", "providers": [{"provider": "novita"}]}
    infos = await listed(server, HF_ROUTER, ROUTED, nobody, painter, bare)
    assert list(infos) == ["org/x", "org/bare"]
    info = infos["org/x"]
    assert info.type is ModelType.VISION
    assert (info.capabilities.vision, info.capabilities.tools) == (True, True)
    assert info.capabilities.max_context_tokens == 65536
    assert info.metadata.price == Price(0.9, 1.5)
    assert info.metadata.updated_at is not None
    bare_info = infos["org/bare"]
    assert (bare_info.capabilities.vision, bare_info.metadata.price) == (None, None)


async def test_a_host_may_be_named(server: ReplayServer) -> None:
    server.answers[MODELS] = (answer({"data": [ROUTED]}),)
    provider = provider_at(server.url, HF_ROUTER)
    before = [ModelInfo("org/x", "s", "org/x")]
    remembered = provider.find("org/x:novita", before)
    assert remembered is not None
    assert remembered.name == "org/x:novita"
    infos = await provider.models()
    await provider.aclose()
    assert provider.find("org/x", infos) is infos[0]
    chosen = provider.find("org/x:novita", infos)
    assert chosen is not None
    assert chosen.name == "org/x:novita"
    assert chosen.capabilities.max_context_tokens == 131072
    assert chosen.metadata.price == Price(0.5, 1.5)
    cheapest = provider.find("org/x:cheapest", infos)
    assert cheapest is not None
    assert (cheapest.name, cheapest.capabilities) == ("org/x:cheapest", infos[0].capabilities)
    assert provider.find("org/y:novita", infos) is None
    assert provider.find("", infos) is None
    with pytest.raises(ModelNotFound, match="'down' does not serve org/x: novita, together does"):
        provider.find("org/x:down", infos)


def test_the_routers_default_model_names_its_host() -> None:
    base, colon, host = HF_ROUTER_MODEL.rpartition(":")
    assert (base, colon, host) == ("zai-org/GLM-4.7-Flash", ":", "novita")


def test_elsewhere_a_colon_is_part_of_the_name() -> None:
    provider = provider_at("http://127.0.0.1:1", NAMED)
    infos = [ModelInfo("m", "s", "m"), ModelInfo("m:7b", "s", "m:7b")]
    assert provider.find("m:7b", infos) is infos[1]
    assert provider.find("m:novita", infos) is None


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_without_a_list_there_are_the_known_models(server: ReplayServer, status: int) -> None:
    server.answers[MODELS] = (answer({"detail": "Not Found"}, status=status),)
    provider = provider_at(server.url, NAMED, known_models=("a", "b"))
    await provider.check()
    assert [info.name for info in await provider.models()] == ["a", "b"]
    await provider.aclose()
    ignorant = provider_at(server.url, NAMED)
    for attempt in (ignorant.models(), ignorant.check()):
        with pytest.raises(Unavailable):
            await attempt
    await ignorant.aclose()


async def test_known_models_are_added_to_a_list(server: ReplayServer) -> None:
    server.answers[MODELS] = (answer({"data": [{"id": "b", "context_length": 5}]}),)
    provider = provider_at(server.url, NAMED, known_models=("a", "b"))
    infos = await provider.models()
    await provider.aclose()
    assert [(info.name, info.capabilities.max_context_tokens) for info in infos] == [("b", 5), ("a", None)]


async def test_a_list_that_is_refused_is_an_error_whatever_is_known(server: ReplayServer) -> None:
    server.answers[MODELS] = (answer({"error": {"message": "Invalid token"}}, status=401),)
    provider = provider_at(server.url, NAMED, known_models=("a",))
    for attempt in (provider.models(), provider.check()):
        with pytest.raises(BadCredentials, match="Invalid token"):
            await attempt
    await provider.aclose()


@pytest.mark.parametrize("body", [{"data": None}, {"data": []}, {}])
async def test_empty_list(server: ReplayServer, body: object) -> None:
    server.answers[MODELS] = (answer(body),)
    provider = provider_at(server.url, NAMED)
    assert await provider.models() == []
    await provider.aclose()


async def test_a_page_is_no_list(server: ReplayServer) -> None:
    server.answers[MODELS] = (answer(b"<html>"),)
    provider = provider_at(server.url, NAMED)
    with pytest.raises(Unavailable, match="not what its API sends"):
        await provider.models()
    await provider.aclose()
