"""Lists that are fresh before anybody asks, and known after a restart (M4, M5)."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from db import models
from db.database import Database
from db.models import KnownModel
from providers.base import LoadedModel, ModelInfo, ModelMetadata, ModelState
from providers.errors import Unavailable
from providers.registry import Registration, Registry
from server.monitor import Monitor
from tests.providers.listing import ListingProvider, info

BIG = ModelInfo(
    name="big",
    source="/models/big",
    display_name="Big",
    metadata=ModelMetadata(size_bytes=7_000_000_000, license="mit"),
    state=ModelState.READY,
)


@pytest.fixture
def one() -> ListingProvider:
    provider = ListingProvider("one")
    provider.listed = [BIG]
    return provider


@asynccontextmanager
async def watched(
    database: Database, provider: ListingProvider, interval_seconds: float | None = None
) -> AsyncIterator[Registry]:
    """A server's registry, from start to stop."""
    registry = Registry([Registration(provider, provider.name)], max_age_seconds=0, list_timeout_seconds=0.2)
    async with Monitor(database, registry, interval_seconds=interval_seconds, retry_seconds=0.02).running():
        yield registry


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.01)


async def kept(database: Database) -> list[str]:
    return [model.name for model in await models.known(database)]


async def test_after_a_restart_a_provider_that_is_down_lists_what_it_had(
    database: Database, one: ListingProvider
) -> None:
    """M5."""
    async with watched(database, one) as registry:
        await registry.models("one")
        await until(lambda: has(database, ["big"]))
    one.error = Unavailable("nobody there")
    async with watched(database, one) as registry:
        assert await registry.models("one") == (replace(BIG, state=ModelState.UNREACHABLE),)
        one.error = None
        assert await registry.models("one", refresh=True) == (BIG,)


async def has(database: Database, names: list[str]) -> bool:
    return await kept(database) == names


async def test_what_came_and_went_is_written_down(database: Database, one: ListingProvider) -> None:
    async with watched(database, one, interval_seconds=0.02):
        await until(lambda: has(database, ["big"]))
        one.listed = [info("a"), info("b")]
        await until(lambda: has(database, ["a", "b"]))
        one.listed = []
        await until(lambda: has(database, []))
        one.listed = [BIG]
        await until(lambda: has(database, ["big"]))
        one.error = Unavailable("nobody there")
        asked = one.asked
        while one.asked < asked + 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await kept(database) == ["big"]


async def test_when_a_model_was_loaded_is_written_down_and_stays(
    database: Database, one: ListingProvider
) -> None:
    """H5: as its provider says, else when it was first seen in memory."""
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    async def noted() -> dict[str, datetime | None]:
        return {model.name: model.loaded_at for model in await models.known(database)}

    async def is_noted(expected: dict[str, datetime | None]) -> bool:
        return await noted() == expected

    async def has_seen_cold() -> bool:
        return (await noted())["cold"] is not None

    one.listed = [replace(BIG, residency=LoadedModel("big", 7, loaded_at=at)), info("cold")]
    async with watched(database, one, interval_seconds=0.02):
        await until(lambda: is_noted({"big": at, "cold": None}))
        one.listed = [BIG, replace(info("cold"), residency=LoadedModel("cold"))]
        await until(has_seen_cold)
        first_seen = (await noted())["cold"]
        one.listed = [BIG, replace(info("cold"), residency=LoadedModel("cold", 8)), info("new")]
        await until(lambda: is_noted({"big": at, "cold": first_seen, "new": None}))
        later = at + timedelta(days=1)
        one.listed = [replace(BIG, residency=LoadedModel("big", 7, loaded_at=later))]
        await until(lambda: is_noted({"big": later}))


async def test_without_an_interval_nobody_is_asked_before_somebody_wants_to_know(
    database: Database, one: ListingProvider
) -> None:
    async with watched(database, one) as registry:
        await asyncio.sleep(0)
        assert one.asked == 0
        await registry.models("one")
        assert one.asked == 1


async def test_a_list_is_known_before_anybody_asks(database: Database, one: ListingProvider) -> None:
    async with watched(database, one, interval_seconds=60) as registry:
        await registry.listed.wait()
        assert registry.known_models("one") == (BIG,)


async def test_a_database_that_breaks_off_delays_no_list_and_learns_it_later(
    database: Database, one: ListingProvider, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    async def is_written() -> bool:
        return bool(await database.fetch(waiting))

    async with watched(database, one) as registry:
        async with database.transaction() as connection:
            await connection.execute("LOCK TABLE model_metadata")
            began = time.monotonic()
            assert await registry.models("one") == (BIG,)
            assert time.monotonic() - began < 0.05
            await until(is_written)
            await connection.fetch(f"SELECT pg_terminate_backend(pid) FROM ({waiting}) AS writer")
        await until(lambda: has(database, ["big"]))
    assert "the lists of models could not be written down yet" in caplog.text


@pytest.mark.parametrize("text", ["\0", "\ud800"])
async def test_what_cannot_be_kept_of_one_provider_harms_no_other(
    text: str, database: Database, one: ListingProvider, caplog: pytest.LogCaptureFixture
) -> None:
    bad = ListingProvider("bad")
    bad.listed = [replace(BIG, description=text)]
    registry = Registry([Registration(bad, "bad"), Registration(one, "one")])
    async with Monitor(database, registry, interval_seconds=None).running():
        await registry.all_models()
        await until(lambda: has(database, ["big"]))
    assert [model.provider for model in await models.known(database)] == ["one"]
    assert "the list of bad's models cannot be written down" in caplog.text


async def test_what_another_version_wrote_is_left_out(database: Database, one: ListingProvider) -> None:
    strange = KnownModel("one", "strange", json.dumps({"title": "of another age"}))
    await models.replace(database, "one", [strange])
    async with watched(database, one) as registry:
        assert registry.known_models("one") == ()
