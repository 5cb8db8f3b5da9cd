"""A reply whose first model failed: who wrote it, and what each of them cost (C9, D2, P4)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from uuid import UUID, uuid4

import pytest

from db import conversations, generations, usage
from db.bell import Bell
from db.database import Database
from db.usage import Attempt
from server.chat import ChatEngine
from server.draft import Draft
from server.events import Completed, Failed, LoggedEvent, ModelSwitched, Started, Stopped, Terminal
from server.leases import Leases
from tests.providers.test_fallback import Vendor, router_of
from tests.server.begin import VIEWER, begin
from tests.server.test_chat import House


@pytest.fixture
async def vendors(request: pytest.FixtureRequest) -> tuple[Vendor, Vendor]:
    """The first one fails; what the second one does is the test's parameter."""
    script: str = getattr(request, "param", "words 3")
    return Vendor("first", "wait 1ms;error quota-exceeded"), Vendor("second", script)


@pytest.fixture
async def house(database: Database, bell: Bell, vendors: tuple[Vendor, Vendor]) -> AsyncIterator[House]:
    house = House(database, bell)
    house.engine = ChatEngine(database, router_of(*vendors), house.log)
    async with house.log.running(), house.engine.running(grace_seconds=0):
        yield house


async def attempts(house: House, generation_id: UUID) -> list[Attempt]:
    return [attempt for _, attempt in await usage.attempts(house.database, VIEWER, [generation_id])]


def kinds(events: list[LoggedEvent]) -> list[type]:
    return [type(event.event) for event in events if isinstance(event.event, ModelSwitched | Terminal)]


async def test_the_model_that_answered_is_the_one_that_is_shown(
    house: House, vendors: tuple[Vendor, Vendor]
) -> None:
    first = vendors[0]
    generation = await house.engine.send(VIEWER, Draft("hello"))
    seen = await house.events(generation)
    assert isinstance(seen[0].event, Started)
    assert seen[0].event.model == f"first:{first.script}"
    (switched,) = [event.event for event in seen if isinstance(event.event, ModelSwitched)]
    reason = "scripted: quota exceeded"
    assert switched == ModelSwitched(f"first:{first.script}", "second:words 3", reason, discard_text=False)
    assert kinds(seen) == [ModelSwitched, Completed]

    reply = await house.reply(generation)
    assert (reply.model, reply.provider, reply.content) == ("second:words 3", "second", "w1 w2 w3")
    ended = await house.engine.generation(VIEWER, generation.id)
    assert (ended.model, ended.provider) == ("second:words 3", "second")

    failed, answered = await attempts(house, generation.id)
    assert (failed.number, failed.model, failed.provider) == (1, f"first:{first.script}", "first")
    assert (failed.outcome, failed.error_code, failed.first_token_at) == ("failed", "QUOTA_EXCEEDED", None)
    assert (answered.number, answered.model, answered.outcome) == (2, "second:words 3", "completed")
    assert (answered.usage.completion_tokens, answered.usage.source) == (3, "provider")
    assert failed.finished_at <= answered.started_at
    assert answered.usage.duration_ms == reply.duration_ms


async def test_the_conversation_goes_on_with_the_model_that_was_meant(
    house: House, vendors: tuple[Vendor, Vendor]
) -> None:
    """It may answer the next time; until then the other one does."""
    first, second = vendors
    answer = await house.engine.send(VIEWER, Draft("hello"))
    await house.events(answer)
    again = await house.engine.send(VIEWER, Draft("and now?", conversation_id=answer.conversation_id))
    await house.events(again)
    assert (first.opened_streams, second.opened_streams) == (2, 2)
    conversation = await conversations.get(house.database, VIEWER, answer.conversation_id)
    assert conversation is not None
    assert conversation.model == f"first:{first.script}"


async def test_a_model_that_the_message_names_is_not_replaced(
    house: House, vendors: tuple[Vendor, Vendor]
) -> None:
    reply = await house.engine.send(VIEWER, Draft("hello", model="first:error unavailable"))
    seen = await house.events(reply)
    assert kinds(seen) == [Failed]
    assert vendors[1].opened_streams == 0


@pytest.mark.parametrize("vendors", ["wait 60s"], indirect=True)
async def test_stopping_while_another_model_is_asked(house: House, vendors: tuple[Vendor, Vendor]) -> None:
    """C7."""
    generation = await house.engine.send(VIEWER, Draft("hello"))
    async with asyncio.timeout(20), aclosing(house.log.read(generation.id)) as events:
        async for event in events:
            if isinstance(event.event, ModelSwitched):
                break
        await house.engine.stop(VIEWER, generation.id)
        rest = [event async for event in events]
    assert kinds(rest) == [Stopped]
    assert [vendor.open_streams for vendor in vendors] == [0, 0]
    assert [attempt.outcome for attempt in await attempts(house, generation.id)] == ["failed", "stopped"]


async def test_a_server_that_dies_after_a_switch(database: Database, bell: Bell) -> None:
    """Whoever closes its reply books what it cost to the model that was writing it."""
    gone, reaper = uuid4(), uuid4()
    generation, _ = await begin(database, gone, lease_seconds=-1)
    await generations.switch_model(database, gone, generation.id, model="second:x", provider="second")
    await generations.switch_model(database, reaper, generation.id, model="not:ours", provider="not")
    leases = Leases(database, bell, reaper, lease_seconds=60, running=tuple, stop=lambda _: None)
    await leases.close_abandoned()
    ((_, attempt),) = await usage.attempts(database, VIEWER, [generation.id])
    assert (attempt.model, attempt.provider, attempt.outcome) == ("second:x", "second", "interrupted")
    (message,) = await conversations.messages(database, VIEWER, [generation.message_id])
    assert (message.model, message.provider) == ("second:x", "second")
