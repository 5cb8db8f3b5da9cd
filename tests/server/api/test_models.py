"""Models and providers, as clients see them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from providers.base import (
    LoadedModel,
    ModelCapabilities,
    ModelInfo,
    ModelMetadata,
    ModelState,
    ModelType,
    Price,
)
from tests.graphql_client import Failed
from tests.server.api.conftest import House

MOON = ModelInfo(
    name="moon",
    source="/models/moon",
    display_name="The Moon",
    type=ModelType.VISION,
    description="Sees in the dark.",
    capabilities=ModelCapabilities(
        streaming=True, vision=True, reasoning=False, max_context_tokens=8192, languages=("en", "de")
    ),
    metadata=ModelMetadata(
        size_bytes=7_000_000_000,
        parameters=3_500_000_000,
        architecture="llama",
        quantization="Q4_K_M",
        license="apache-2.0",
        updated_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        price=Price(0.5, 1.5),
    ),
    state=ModelState.COLD,
)
STAR = ModelInfo(name="star", source="/models/star", display_name="A Star")

WHOLE = """
  name type source displayName description state provider { name prefix }
  capabilities {
    supportsVision supportsStreaming supportsTools supportsReasoning maxContextLength supportedLanguages
  }
  metadata { size parameters architecture quantization license lastUpdated price { input output } }
"""
AVAILABLE = """
query ($provider: String, $search: String, $capabilities: [Capability!], $refresh: Boolean) {
  availableModels(provider: $provider, search: $search, capabilities: $capabilities, refresh: $refresh) {
    name state
  }
}
"""
MODEL = "query ($name: String!) { model(name: $name) {" + WHOLE + "} }"
HEALTH = "{ providers { name prefix health { status lastError checkedAt } models { name state } } }"


@pytest.fixture(autouse=True)
def _stocked(house: House) -> None:
    house.dark.listed = [MOON, STAR]


async def names(house: House, **variables: Any) -> list[str]:
    return [model["name"] for model in await house.client.ask(AVAILABLE, **variables)]


async def test_a_model_says_all_that_is_known_of_it(house: House) -> None:
    """M1."""
    assert await house.client.ask(MODEL, name="dark:moon") == {
        "name": "dark:moon",
        "type": "VISION",
        "source": "/models/moon",
        "displayName": "The Moon",
        "description": "Sees in the dark.",
        "state": "COLD",
        "provider": {"name": "dark", "prefix": "dark"},
        "capabilities": {
            "supportsVision": True,
            "supportsStreaming": True,
            "supportsTools": None,
            "supportsReasoning": False,
            "maxContextLength": 8192,
            "supportedLanguages": ["en", "de"],
        },
        "metadata": {
            "size": 7_000_000_000,
            "parameters": 3_500_000_000,
            "architecture": "llama",
            "quantization": "Q4_K_M",
            "license": "apache-2.0",
            "lastUpdated": "2026-01-02T03:04:05+00:00",
            "price": {"input": 0.5, "output": 1.5},
        },
    }


async def test_what_is_not_known_is_null(house: House) -> None:
    star = await house.client.ask(MODEL, name="dark:star")
    assert star["metadata"] == dict.fromkeys(star["metadata"])
    assert star["capabilities"] == dict.fromkeys(star["capabilities"]) | {
        "supportsStreaming": True,
        "supportedLanguages": [],
    }
    assert star["description"] is None


async def test_a_model_in_memory_says_what_it_takes(house: House) -> None:
    """H6."""
    ask = "query ($name: String!) { model(name: $name) { residency { memoryBytes leases loadedAt } } }"
    assert await house.client.ask(ask, name="dark:moon") == {"residency": None}
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    house.dark.listed = [
        replace(MOON, residency=LoadedModel("moon", 5_000_000_000, leases=2, loaded_at=at)),
        replace(STAR, residency=LoadedModel("star")),
    ]
    await names(house, refresh=True)
    moon = {"memoryBytes": 5_000_000_000, "leases": 2, "loadedAt": "2026-01-02T03:04:05+00:00"}
    assert await house.client.ask(ask, name="dark:moon") == {"residency": moon}
    assert await house.client.ask(ask, name="dark:star") == {"residency": dict.fromkeys(moon)}
    house.dark.is_on = False
    await names(house, refresh=True)
    assert await house.client.ask(ask, name="dark:moon") == {"residency": None}


async def test_a_model_is_found_by_every_name_that_a_message_takes(house: House) -> None:
    for name in ("dark:moon", "night:moon", "moon"):
        assert (await house.client.ask(MODEL, name=name))["name"] == "dark:moon"
    for name in ("dark:sun", "sun", "", ":", "dark:", "\0"):
        assert await house.client.ask(MODEL, name=name) is None


async def test_every_providers_models_are_listed(house: House) -> None:
    listed = await names(house)
    assert listed[-2:] == ["dark:moon", "dark:star"]
    assert "scripted:history" in listed


async def test_models_are_filtered(house: House) -> None:
    for provider in ("dark", "night"):
        assert await names(house, provider=provider) == ["dark:moon", "dark:star"]
    assert await names(house, search="THE m") == ["dark:moon"]
    assert await names(house, search="dark:s") == ["dark:star"]
    assert await names(house, provider="scripted", search="moon") == []
    assert await names(house, capabilities=["VISION", "STREAMING"]) == ["dark:moon"]
    assert await names(house, provider="dark", capabilities=["TOOLS"]) == []
    assert await names(house, provider="dark", capabilities=[], search=None) == ["dark:moon", "dark:star"]
    reasoning = await names(house, capabilities=["REASONING"])
    assert reasoning
    assert all("reason " in name for name in reasoning)


async def test_an_unknown_provider_is_not_found(house: House) -> None:
    with pytest.raises(Failed) as failed:
        await names(house, provider="nobody")
    assert failed.value.code == "NOT_FOUND"
    assert "scripted, dark" in failed.value.message


async def test_a_provider_that_is_down_keeps_its_list_as_unreachable(house: House) -> None:
    (scripted, dark) = await house.client.ask(HEALTH)
    assert (scripted["name"], scripted["prefix"]) == ("scripted", "scripted")
    assert [model["name"] for model in dark["models"]] == ["dark:moon", "dark:star"]

    house.dark.is_on = False
    unreachable = await house.client.ask(AVAILABLE, provider="dark", refresh=True)
    assert [model["state"] for model in unreachable] == ["UNREACHABLE", "UNREACHABLE"]
    (scripted, dark) = await house.client.ask(HEALTH)
    assert scripted["health"]["status"] == "UP"
    assert dark["health"]["status"] == "DOWN"
    assert dark["health"]["lastError"] == "nothing answers at http://127.0.0.1:1"
    asked = datetime.fromisoformat(dark["health"]["checkedAt"])
    assert datetime.now(UTC) - asked < timedelta(seconds=10)
    assert "scripted:history" in await names(house)

    house.dark.is_on = True
    back = await house.client.ask(AVAILABLE, provider="dark", refresh=True)
    assert [model["state"] for model in back] == ["COLD", "COLD"]


async def test_a_provider_that_was_not_asked_is_unknown(house: House) -> None:
    for provider in await house.client.ask("{ providers { health { status lastError checkedAt } } }"):
        assert provider["health"] == {"status": "UNKNOWN", "lastError": None, "checkedAt": None}


async def test_a_list_is_as_old_as_the_last_request_unless_refreshed(house: House) -> None:
    house.registry._max_age = timedelta(hours=1)
    assert await names(house, provider="dark") == ["dark:moon", "dark:star"]
    house.dark.listed = [STAR]
    assert await names(house, provider="dark") == ["dark:moon", "dark:star"]
    assert await names(house, provider="dark", refresh=True) == ["dark:star"]
