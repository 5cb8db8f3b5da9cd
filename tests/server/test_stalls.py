"""A Postgres that answers nothing for longer than a lease, and fails nothing: nobody is judged by it."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from uuid import UUID

from db.bell import Bell
from db.database import Database
from tests.server.api.conftest import QUICK, House, opened
from tests.server.api.test_on_disconnect import reading
from tests.server.stall import stalled

LEASE_SECONDS = 1.0  # a house's readers are absent after as much
TIMING = replace(QUICK, lease_seconds=LEASE_SECONDS)


async def status_after_a_stall(house: House, url: str, generation_ids: list[str]) -> set[str]:
    await asyncio.sleep(1.5 * LEASE_SECONDS)  # until others are judged
    async with stalled(url):
        await asyncio.sleep(2 * LEASE_SECONDS)
    await asyncio.sleep(LEASE_SECONDS)  # for whoever would judge at once
    return {(await house.engine.generation(house.viewer_id, UUID(id_))).status for id_ in generation_ids}


async def test_one_who_reads_is_not_absent(database: Database, bell: Bell, database_url: str) -> None:
    async with opened(House(database, bell, TIMING)) as house, house.client.socket() as socket:
        _, generation_id = await reading(socket, "STOP")
        assert await status_after_a_stall(house, database_url, [generation_id]) == {"streaming"}


async def test_replies_of_others_are_not_abandoned(bell: Bell, database_url: str) -> None:
    async with AsyncExitStack() as stack:
        houses, generation_ids = [], []
        for _ in range(4):
            database = await stack.enter_async_context(Database.open(database_url))
            houses.append(await stack.enter_async_context(opened(House(database, bell, TIMING))))
            socket = await stack.enter_async_context(houses[-1].client.socket())
            generation_ids.append((await reading(socket, "KEEP"))[1])
        assert await status_after_a_stall(houses[0], database_url, generation_ids) == {"streaming"}
