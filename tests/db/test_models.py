"""What is known of models, provider by provider (M5)."""

import json
from datetime import UTC, datetime

import pytest

from db import models
from db.database import Database, InvalidData
from db.models import KnownModel


def known(provider: str, name: str, size: int = 1) -> KnownModel:
    return KnownModel(provider, name, json.dumps({"size": size}))


async def test_a_list_replaces_the_one_before_and_no_other_providers(database: Database) -> None:
    await models.replace(database, "one", [known("one", "b"), known("one", "a")])
    await models.replace(database, "two", [known("two", "a")])
    await models.replace(database, "one", [known("one", "c"), known("one", "b", size=2)])
    kept = [(model.provider, model.name, json.loads(model.details)) for model in await models.known(database)]
    assert kept == [("one", "b", {"size": 2}), ("one", "c", {"size": 1}), ("two", "a", {"size": 1})]
    await models.replace(database, "one", [])
    assert [model.provider for model in await models.known(database)] == ["two"]


async def test_when_a_model_was_loaded_outlives_its_lists_and_goes_with_it(database: Database) -> None:
    """H5."""

    async def loaded() -> dict[str, datetime | None]:
        return {model.name: model.loaded_at for model in await models.known(database)}

    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    await models.replace(database, "one", [known("one", "a"), known("one", "b"), known("one", "c")])
    await models.note_loaded(database, "one", "a", at)
    await models.note_loaded(database, "one", "b")
    await models.note_loaded(database, "one", "unknown", at)
    noted = await loaded()
    assert (noted["a"], noted["c"]) == (at, None)
    assert noted["b"] is not None
    await models.replace(database, "one", [known("one", "a", size=2), known("one", "b", size=2)])
    assert await loaded() == {"a": at, "b": noted["b"]}
    await models.replace(database, "one", [])
    await models.replace(database, "one", [known("one", "a")])
    assert await loaded() == {"a": None}


async def test_what_cannot_be_stored_leaves_the_list_as_it_was(database: Database) -> None:
    await models.replace(database, "one", [known("one", "a")])
    with pytest.raises(InvalidData):
        await models.replace(database, "one", [KnownModel("one", "b", '"\\u0000"')])
    assert [model.name for model in await models.known(database)] == ["a"]
