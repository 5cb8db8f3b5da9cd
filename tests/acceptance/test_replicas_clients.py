"""The public npm client graphql-ws with the lines that docs/streaming.md shows: a reply comes exactly once,
whatever happens to the connection."""

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from db.database import Database
from tests.acceptance.audit import audited
from tests.acceptance.parley import Message
from tests.acceptance.reading import SEND_OR_RESUME, Reading
from tests.acceptance.replicas import FrontDoor, Replica, replicas

MODEL = "scripted:wait 100ms;words 300 every 10ms"
CLIENTS = 6
_COMPLETE = re.compile(rb'\x81.\{[^{}]*"complete"[^{}]*\}', re.DOTALL)  # the frame of that message


def look_on(_: Message) -> None:
    """Do nothing to the connection."""


async def read_through(
    door: FrontDoor, replica: Replica, message: str, interfere: Callable[[Message], None] = look_on
) -> tuple[Reading, int]:
    """What one client made of a reply, and how often it lost its connection, or found nobody there."""
    reading, losses = Reading(), 0
    through = replace(replica.parley, url=door.url)
    sent = {"message": message, "model": MODEL}
    async with aclosing(through.stream("coming-back.mjs", SEND_OR_RESUME, input=sent)) as lines:
        async for line in lines:
            interfere(line)
            if "lost" in line.content:
                losses += 1
            elif "next" in line.content:
                reading.add(dict(line.event))
            else:
                assert line.content == {"complete": True}
    return reading, losses


async def read_with_losses(fleet: Sequence[Replica], number: int) -> tuple[Reading, int]:
    """One client that loses its connection every now and then, and comes back to either replica, or to nobody
    at first."""
    chance = random.Random(number)  # noqa: S311 - any seed will do
    door = FrontDoor(fleet[0])

    def interfere(line: Message) -> None:
        if "lost" in line.content:
            door.lead_to(chance.choice([*fleet, None]))
        elif chance.random() < 0.1:
            door.cut(abruptly=chance.random() < 0.5)

    async with door.running():
        return await read_through(door, fleet[0], f"message {number}", interfere)


async def test_the_connection_is_lost_at_random(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    """C7."""
    async with replicas(tmp_path, database_url) as fleet:
        read = await asyncio.gather(*(read_with_losses(fleet, number) for number in range(CLIENTS)))
    stored = await audited(database)
    assert sorted(one.asked for one in stored.values()) == [f"message {number}" for number in range(CLIENTS)]
    for reading, losses in read:
        assert losses > 3
        stored[reading.seen[0]["generationId"]].check_followed([reading])


async def test_the_connection_is_lost_behind_the_last_event(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    """The client asks again, is told the end again, and passes it on once."""
    async with replicas(tmp_path, database_url, 1) as (replica,), FrontDoor(replica).running() as door:
        held_back = 0

        def cut_off(data: bytes) -> bytes:
            nonlocal held_back
            if held_back or not (complete := _COMPLETE.search(data)):
                return data
            held_back += 1
            asyncio.get_running_loop().call_soon(lambda: door.cut(abruptly=False))
            return data[: complete.start()]

        door.garble(cut_off)
        reading, losses = await read_through(door, replica, "once")
    assert (held_back, losses) == (1, 1)
    (stored,) = (await audited(database)).values()
    stored.check_followed([reading])
