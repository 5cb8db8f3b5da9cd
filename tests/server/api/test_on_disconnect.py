"""Replies that are to stop when nobody reads them any more, and those that are not."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from db.bell import Bell
from db.database import Database
from tests.event_stream import event_stream, events
from tests.graphql_client import Failed, Operation, Socket
from tests.server.api.conftest import QUICK, House, opened
from tests.server.api.test_subscriptions import SEND, WATCH

ENDLESS = "words 1000000 every 5ms"
# A lease, and an absence, are over in no time; a test that needs nobody to be judged has the usual 10 s.
HASTY = replace(QUICK, lease_seconds=0.4)
ADD = "mutation ($input: MessageInput!) { addMessage(input: $input) { id } }"
START = "mutation ($input: MessageInput!) { sendMessage(input: $input) { id } }"


@pytest.fixture
async def replicas(database: Database, bell: Bell) -> AsyncIterator[list[House]]:
    async with AsyncExitStack() as stack:
        houses = [House(database, bell, HASTY), House(database, bell, HASTY)]
        yield [await stack.enter_async_context(opened(house)) for house in houses]


async def reading(
    socket: Socket, on_disconnect: str = "STOP", script: str = ENDLESS
) -> tuple[Operation, str]:
    message = {"message": "hello", "model": f"scripted:{script}", "onDisconnect": on_disconnect}
    operation = await socket.subscribe(SEND, input=message)
    seen = await operation.until("TextDelta")
    return operation, seen[-1]["generationId"]


async def watching(socket: Socket, generation_id: str) -> Operation:
    operation = await socket.subscribe(WATCH, id=generation_id)
    await operation.until("TextDelta")
    return operation


async def ended(house: House, generation_id: str) -> str:
    """How, when it has."""
    await house.engine.ended(UUID(generation_id))
    return (await house.engine.generation(house.viewer_id, UUID(generation_id))).status


async def says_more(operation: Operation, deltas: int = 20) -> None:
    for _ in range(deltas):
        await operation.until("TextDelta")


async def test_unsubscribing_stops_the_reply_at_once(house: House) -> None:
    """C7. No absence is waited for: here it would be 10 s."""
    async with house.client.socket() as socket:
        operation, generation_id = await reading(socket)
        await operation.complete()
        assert await ended(house, generation_id) == "stopped"
    assert house.scripted.open_streams == 0


async def test_unsubscribing_stops_no_other_reply(house: House) -> None:
    async with house.client.socket() as socket:
        operation, kept = await reading(socket, "KEEP", "words 100 every 5ms")
        _, other = await reading(socket, "STOP", "words 100 every 5ms")
        await operation.complete()
        assert await ended(house, kept) == "completed"
        assert await ended(house, other) == "completed"


async def test_the_last_reader_decides_on_whichever_replica(replicas: list[House]) -> None:
    here, there = replicas
    async with here.client.socket() as mine, there.client.socket() as other:
        first, generation_id = await reading(mine)
        second = await watching(other, generation_id)
        await first.complete()
        await says_more(second)
        assert (await here.engine.generation(here.viewer_id, UUID(generation_id))).finished_at is None
        await second.complete()
        assert await ended(here, generation_id) == "stopped"


async def test_two_that_unsubscribe_together(replicas: list[House]) -> None:
    here, there = replicas
    async with here.client.socket() as mine, there.client.socket() as other:
        first, generation_id = await reading(mine)
        second = await watching(other, generation_id)
        await first.complete()
        await second.complete()
        assert await ended(there, generation_id) == "stopped"


@pytest.mark.parametrize("way", ["socket", "event stream"])
async def test_a_reader_that_is_lost_and_stays_away(way: str, replicas: list[House]) -> None:
    house = replicas[0]
    if way == "socket":
        async with house.client.socket() as socket:
            _, generation_id = await reading(socket)
            socket.drop()
    else:
        message = {"message": "hello", "model": f"scripted:{ENDLESS}", "onDisconnect": "STOP"}
        async with event_stream(house.client, SEND, input=message) as response:
            generation_id = (await anext(events(response))).value["generationId"]
    assert await ended(house, generation_id) == "stopped"


async def test_a_reader_that_comes_back(replicas: list[House]) -> None:
    """At the other replica, and stays for longer than an absence."""
    here, there = replicas
    async with here.client.socket() as lost:
        _, generation_id = await reading(lost, script="words 400 every 5ms")
        lost.drop()
    async with there.client.socket() as socket:
        rest: list[Any] = await (await socket.subscribe(WATCH, id=generation_id)).rest()
    assert rest[-1]["__typename"] == "GenerationCompleted"


async def test_readers_are_not_judged_after_an_outage_before_they_could_say_that_they_are_there(
    house: House,
) -> None:
    """None was noted while the database was away."""
    async with house.client.socket() as socket:
        operation, generation_id = await reading(socket)
        await house.database.execute("DELETE FROM generation_readers")
        await says_more(operation, 100)
        assert (await house.engine.generation(house.viewer_id, UUID(generation_id))).finished_at is None


@pytest.mark.parametrize("mutation", [START, ADD])
async def test_what_nobody_reads_cannot_be_stopped_by_leaving(mutation: str, house: House) -> None:
    with pytest.raises(Failed) as failed:
        await house.client.ask(
            mutation, input={"message": "hello", "model": "scripted:words 3", "onDisconnect": "STOP"}
        )
    assert failed.value.code == "BAD_INPUT"
    assert await house.count("generations") == 0
