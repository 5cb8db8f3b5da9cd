"""Names and who answers to them: C2 and C3, case by case."""

import pytest

from providers.base import TextDelta
from providers.errors import CapabilityMissing, ModelNotFound, Unavailable
from providers.ollama import Ollama, OllamaSettings
from providers.registry import Registration, Registry
from providers.reply import ReplyLimits
from providers.router import Route, Router
from providers.scripted import Scripted
from tests.providers.conftest import chat, collect
from tests.providers.listing import ListingProvider, info
from tests.providers.replay import ReplayServer, answer

LIMITS = ReplyLimits(first_token_seconds=1, silence_seconds=1)


@pytest.fixture
def ollama_like() -> ListingProvider:
    return ListingProvider("ollama", "smollm2:135m", "both:1b")


@pytest.fixture
def local() -> ListingProvider:
    return ListingProvider("huggingface", "SmolLM2", "both:1b", "only-here")


@pytest.fixture
def registry(ollama_like: ListingProvider, local: ListingProvider) -> Registry:
    return Registry(
        [
            Registration(ollama_like, "ollama"),
            Registration(local, "hf", aliases=("huggingface",)),
            Registration(Scripted(LIMITS), "scripted"),
        ]
    )


@pytest.fixture
def router(registry: Registry) -> Router:
    return Router(registry, default_provider="ollama")


@pytest.mark.parametrize(
    ("name", "full_name"),
    [
        ("hf:SmolLM2", "hf:SmolLM2"),
        ("huggingface:SmolLM2", "hf:SmolLM2"),
        ("ollama:smollm2:135m", "ollama:smollm2:135m"),
        ("smollm2:135m", "ollama:smollm2:135m"),
        ("both:1b", "ollama:both:1b"),
        ("hf:both:1b", "hf:both:1b"),
        ("only-here", "hf:only-here"),
        ("scripted:words 3;text a:b", "scripted:words 3;text a:b"),
    ],
)
async def test_names(router: Router, name: str, full_name: str) -> None:
    route = await router.resolve(name)
    assert route.full_name == full_name
    assert route.full_name.endswith(f":{route.model}")


@pytest.mark.parametrize(
    "name", ["nobody", "nobody:1b", "hf:nobody", "ollama:only-here", "hf:", "", ":", "HF:SmolLM2"]
)
async def test_unknown_model(router: Router, name: str) -> None:
    with pytest.raises(ModelNotFound, match="has no model") as caught:
        await router.resolve(name)
    assert repr(name.removeprefix("hf:").removeprefix("ollama:")) in caught.value.message


async def test_script_that_is_none(router: Router, registry: Registry) -> None:
    with pytest.raises(ModelNotFound, match="steps separated by"):
        await router.resolve("scripted:wrods 3")
    with pytest.raises(ModelNotFound, match="ollama has no model 'stall'"):
        await router.resolve("stall")


async def test_a_known_model_costs_no_request(
    router: Router, ollama_like: ListingProvider, local: ListingProvider
) -> None:
    await router.resolve("only-here")
    before = (ollama_like.asked, local.asked)
    for name in ("only-here", "hf:only-here", "smollm2:135m", "ollama:both:1b"):
        await router.resolve(name)
    assert (ollama_like.asked, local.asked) == before == (1, 1)


async def test_a_miss_asks_once_more(
    router: Router, ollama_like: ListingProvider, local: ListingProvider
) -> None:
    await router.resolve("smollm2:135m")
    ollama_like.listed.append(info("new:1b"))
    assert (await router.resolve("ollama:new:1b")).model == "new:1b"
    assert (ollama_like.asked, local.asked) == (2, 1)
    local.listed.append(info("newer"))
    assert (await router.resolve("newer")).provider_name == "huggingface"
    assert (ollama_like.asked, local.asked) == (3, 2)
    with pytest.raises(ModelNotFound):
        await router.resolve("hf:nobody")
    assert local.asked == 3


async def test_a_model_of_a_provider_that_is_down_is_taken_on_trust(
    router: Router, ollama_like: ListingProvider
) -> None:
    ollama_like.error = Unavailable("nobody there")
    assert await router.resolve("ollama:x:1b") == Route("ollama", "x:1b", "ollama:x:1b")
    assert await router.resolve("x:1b") == Route("ollama", "x:1b", "ollama:x:1b")
    assert (await router.resolve("both:1b")).provider_name == "huggingface"


async def test_nobody_else_is_asked_silently(
    registry: Registry, router: Router, local: ListingProvider
) -> None:
    """C2: a bare name that nobody lists goes to the default provider, never elsewhere."""
    local.error = Unavailable("nobody there")
    with pytest.raises(ModelNotFound, match="ollama has no model 'x'"):
        await router.resolve("x")
    absent = Router(registry, default_provider="claude")
    with pytest.raises(ModelNotFound, match="no provider has a model 'x'"):
        await absent.resolve("x")


async def test_no_model_named(
    registry: Registry, router: Router, ollama_like: ListingProvider, local: ListingProvider
) -> None:
    assert (await router.resolve(None)).full_name == "ollama:smollm2:135m"
    configured = Router(registry, default_provider="huggingface", default_models={"huggingface": "only-here"})
    assert (await configured.resolve(None)).full_name == "hf:only-here"
    elsewhere = Router(registry, default_provider="huggingface", default_models={"huggingface": "gone"})
    assert (await elsewhere.resolve(None)).full_name == "hf:SmolLM2"
    ollama_like.error = Unavailable("nobody there")
    await registry.models("ollama", refresh=True)
    assert (await router.resolve(None)).full_name == "hf:SmolLM2"
    local.listed.clear()
    await registry.models("huggingface", refresh=True)
    assert (await router.resolve(None)).provider_name == "scripted"


async def test_no_model_at_all(ollama_like: ListingProvider, local: ListingProvider) -> None:
    ollama_like.error = Unavailable("Ollama cannot be reached")
    local.listed.clear()
    router = Router(
        Registry([Registration(ollama_like, "ollama"), Registration(local, "hf")]), default_provider="ollama"
    )
    with pytest.raises(ModelNotFound, match="no model is available") as caught:
        await router.resolve(None)
    assert "ollama: Ollama cannot be reached; huggingface: lists no model" in caught.value.message


async def test_a_name_without_tag_means_latest(server: ReplayServer) -> None:
    server.answers["/api/tags"] = (
        answer({"models": [{"name": "smollm2:latest"}, {"name": "smollm2:135m"}]}),
    )
    ollama = Ollama(OllamaSettings(server.url))
    router = Router(Registry([Registration(ollama, "ollama")]), default_provider="ollama")
    for name in ("smollm2", "ollama:smollm2"):
        assert (await router.resolve(name)).full_name == "ollama:smollm2:latest"
    await ollama.aclose()


async def test_stream_asks_the_provider_of_the_route(router: Router) -> None:
    route = await router.resolve("hf:SmolLM2")
    events = await collect(router.stream(route, chat("whatever was asked for")))
    assert events[0] == TextDelta("huggingface/SmolLM2")


@pytest.mark.parametrize(
    ("enabled", "configured", "why"), [(False, True, "is disabled"), (True, False, "is not configured")]
)
async def test_a_model_of_a_provider_that_is_not_in_use(
    enabled: bool, configured: bool, why: str, ollama_like: ListingProvider, local: ListingProvider
) -> None:
    off = Registration(local, "hf", enabled=enabled, configured=configured)
    registry = Registry([off, Registration(ollama_like, "ollama")])
    router = Router(registry, default_provider="ollama")
    with pytest.raises(ModelNotFound, match=f"huggingface {why}.*'SmolLM2'"):
        await router.resolve("hf:SmolLM2")
    with pytest.raises(ModelNotFound, match="ollama has no model 'only-here'"):
        await router.resolve("only-here")
    assert (await router.resolve("both:1b")).full_name == "ollama:both:1b"
    assert (await router.resolve(None)).full_name == "ollama:smollm2:135m"
    by_default = Router(registry, default_provider="huggingface")
    with pytest.raises(ModelNotFound, match=f"huggingface {why}"):
        await by_default.resolve("nobody")
    assert (await by_default.resolve(None)).full_name == "ollama:smollm2:135m"
    assert local.asked == 0


async def test_a_script_of_a_disabled_scripted_provider(ollama_like: ListingProvider) -> None:
    registry = Registry(
        [Registration(Scripted(LIMITS), "scripted", enabled=False), Registration(ollama_like, "ollama")]
    )
    router = Router(registry, default_provider="ollama")
    with pytest.raises(ModelNotFound, match="scripted is disabled"):
        await router.resolve("scripted:words 3")


async def test_who_holds_a_model_in_memory(router: Router, server: ReplayServer) -> None:
    with pytest.raises(CapabilityMissing, match="huggingface holds no models in memory"):
        router.host(await router.resolve("hf:SmolLM2"))
    server.answers["/api/tags"] = (answer({"models": [{"name": "m"}]}),)
    ollama = Ollama(OllamaSettings(server.url))
    hosting = Router(Registry([Registration(ollama, "ollama")]), default_provider="ollama")
    assert hosting.host(await hosting.resolve("m")) is ollama
    await ollama.aclose()
