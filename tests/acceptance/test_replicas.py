"""Two servers on one database are one: a reply is sent, read and resumed at either, in whatever pieces."""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest

from db.database import Database
from tests.acceptance.audit import audited
from tests.acceptance.reading import SEND_OR_RESUME, WATCH, WAYS, Reading, over_websocket
from tests.acceptance.replicas import Replica, replicas
from tests.graphql_client import Json, Refused

REPLIES = 1000
AT_ONCE = 24
MODEL = "scripted:words 30 every 5ms"


async def read_in_pieces(fleet: Sequence[Replica], number: int, chance: random.Random) -> list[Reading]:
    """A reply that is sent and read to its end in pieces of random length, and a part of it once more."""
    message = {"message": f"message {number}", "model": MODEL, "clientKey": f"key {number}"}

    def events(after: int, reply: str | None) -> AsyncGenerator[Json]:
        way, client = chance.choice(WAYS), chance.choice(fleet).client
        if reply and chance.random() < 0.5:
            return way(client, WATCH, id=reply, after=after)
        return way(client, SEND_OR_RESUME, input=message, after=after)

    pieces = [Reading()]
    await pieces[0].read(events(0, None), most=chance.randint(1, 8))
    reply = pieces[0].generation_id
    while pieces[-1].terminal is None:
        pieces.append(Reading(pieces[-1].reached))
        await pieces[-1].read(events(pieces[-1].after, reply), most=chance.randint(1, 8))
    pieces.append(Reading(chance.randint(0, pieces[-1].reached + 3)))
    await pieces[-1].read(events(pieces[-1].after, reply))
    return pieces


async def test_a_thousand_replies_read_in_pieces_lose_nothing_and_double_nothing(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    """C7 D2."""
    chance = random.Random(4)  # noqa: S311 - any seed will do
    numbers = iter(range(REPLIES))
    read: dict[int, list[Reading]] = {}

    async def read_one_by_one(fleet: Sequence[Replica]) -> None:
        for number in numbers:
            read[number] = await read_in_pieces(fleet, number, chance)

    async with replicas(tmp_path, database_url) as fleet, asyncio.TaskGroup() as clients:
        for _ in range(AT_ONCE):
            clients.create_task(read_one_by_one(fleet))
    stored = await audited(database)
    assert len(read) == len(stored) == REPLIES
    for *pieces, again in read.values():
        whole = stored[again.seen[0]["generationId"]]
        assert whole.content == " ".join(f"w{number}" for number in range(1, 31))
        whole.check_followed(pieces)
        whole.check_reading(again)


async def test_ten_sends_with_one_key_are_one(database_url: str, database: Database, tmp_path: Path) -> None:
    message = {"message": "Once.", "model": MODEL, "clientKey": "one"}
    async with replicas(tmp_path, database_url) as fleet:
        readings = [Reading() for _ in range(10)]
        sent = (
            reading.read(over_websocket(fleet[n % 2].client, SEND_OR_RESUME, input=message, after=0))
            for n, reading in enumerate(readings)
        )
        await asyncio.gather(*sent)
        other = over_websocket(fleet[0].client, SEND_OR_RESUME, input=message | {"message": "Twice."})
        with pytest.raises(Refused) as refused:
            await Reading().read(other)
    assert refused.value.code == "CLIENT_KEY_REUSED"
    ((reply, stored),) = (await audited(database)).items()
    for reading in readings:
        assert reading.generation_id == reply
        stored.check_followed([reading])
