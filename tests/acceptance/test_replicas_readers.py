"""A reply that is to stop without readers, whose readers are at several servers."""

import asyncio
from contextlib import suppress
from pathlib import Path

from db.database import Database
from tests.acceptance.audit import audited
from tests.acceptance.reading import SEND_OR_RESUME, WATCH, Lost, Reading, over_websocket
from tests.acceptance.replicas import Replica, replicas
from tests.db.processes import eventually

STATUS = "query ($id: ID!) { generation(id: $id) { status } }"


class Reader:
    """Reads until it is told to go."""

    def __init__(self, replica: Replica, query: str, *, vanishes: bool = False, **variables: object) -> None:
        self.reading = Reading()
        events = over_websocket(replica.client, query, vanish=vanishes, **variables)
        self._task = asyncio.create_task(self.reading.read(events))

    async def reads_on(self) -> None:
        await self.reading.saw(len(self.reading.seen) + 5)

    @property
    def reply(self) -> str:
        assert self.reading.generation_id
        return self.reading.generation_id

    async def go(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError, Lost):
            await self._task


async def sender(replica: Replica, *, vanishes: bool = False) -> Reader:
    sent = {"message": "Go on.", "model": "scripted:words 100000 every 20ms", "onDisconnect": "STOP"}
    reader = Reader(replica, SEND_OR_RESUME, vanishes=vanishes, input=sent)
    await reader.reads_on()
    return reader


async def watcher(replica: Replica, reply: str) -> Reader:
    reader = Reader(replica, WATCH, id=reply)
    await reader.reads_on()
    return reader


async def status(replica: Replica, reply: str) -> str:
    """Asked by somebody who is no reader."""
    found: str = (await replica.client.ask(STATUS, id=reply))["status"]
    return found


async def stops(replica: Replica, reply: str) -> None:
    async def has_stopped() -> bool:
        return await status(replica, reply) == "STOPPED"

    await eventually(has_stopped)


async def test_it_stops_when_the_last_one_unsubscribes(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    async with replicas(tmp_path, database_url) as (one, other):
        first = await sender(one)
        second = await watcher(other, first.reply)
        await first.go()
        await second.reads_on()
        assert await status(one, second.reply) == "STREAMING"
        await second.go()
        await stops(one, second.reply)
    (stored,) = (await audited(database)).values()
    stored.check_reading(second.reading)


async def test_it_stops_when_the_last_one_was_lost_and_does_not_come_back(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    """Lost with its connection, or with its server."""
    async with replicas(tmp_path, database_url, 3) as (one, other, doomed):
        gone = await sender(one, vanishes=True)
        back = await sender(one, vanishes=True)
        first = await sender(one)
        orphan = await watcher(doomed, first.reply)
        await first.go()
        await gone.go()
        await back.go()
        await doomed.kill()
        await orphan.go()
        again = await watcher(other, back.reply)
        await stops(one, gone.reply)
        await stops(one, orphan.reply)
        await again.reads_on()
        assert await status(other, again.reply) == "STREAMING"
        await again.go()
        await stops(other, again.reply)
    stored = await audited(database)
    for reader in (gone, back, first, orphan, again):
        stored[reader.reply].check_reading(reader.reading)
