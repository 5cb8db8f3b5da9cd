"""A message with a client key is sent once, however often, wherever and how simultaneously it is sent."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from db.bell import Bell
from db.database import Database
from db.generations import Generation
from providers.base import GenerationOptions, ModelInfo
from providers.errors import ModelNotFound
from providers.scripted import Scripted
from server.draft import Draft
from server.errors import ChatError, ErrorCode
from tests.server.begin import VIEWER
from tests.server.test_chat import PATIENT, House

DRAFT = Draft("hello", model="scripted:text so;stall", client_key="mine")


class Forgetful(Scripted):
    """A provider that no longer has any model."""

    def find(self, name: str, listed: Sequence[ModelInfo]) -> ModelInfo:
        raise ModelNotFound(f"scripted has no model {name!r}")


@asynccontextmanager
async def opened(house: House) -> AsyncGenerator[House]:
    async with house.log.running(), house.engine.running(grace_seconds=0):
        yield house


@pytest.fixture
async def replicas(database: Database, bell: Bell) -> AsyncIterator[list[House]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(opened(House(database, bell))) for _ in range(2)]


@pytest.fixture
def house(replicas: list[House]) -> House:
    return replicas[0]


async def sent(house: House, draft: Draft = DRAFT) -> Generation:
    return await house.engine.send(VIEWER, draft)


async def refusal(house: House, draft: Draft) -> ErrorCode:
    with pytest.raises(ChatError) as refused:
        await sent(house, draft)
    return refused.value.code


async def stored(database: Database) -> tuple[int, int]:
    """How many generations and messages there are."""
    generations = await database.fetchval("SELECT count(*) FROM generations")
    return generations, await database.fetchval("SELECT count(*) FROM messages")


async def conversation_of(house: House) -> UUID:
    return (await house.say("text before")).conversation_id


@pytest.mark.parametrize("begins_conversation", [True, False])
@pytest.mark.parametrize("sides", [(0, 0), (0, 1)])
async def test_ten_sent_at_once_are_one(
    database: Database, replicas: list[House], begins_conversation: bool, sides: tuple[int, int]
) -> None:
    """C7."""
    conversation_id = None if begins_conversation else await conversation_of(replicas[0])
    before = await stored(database)
    for number in range(5):
        draft = replace(DRAFT, conversation_id=conversation_id, client_key=f"key {number}")
        sending = [sent(replicas[side], draft) for _ in range(5) for side in sides]
        generations = await asyncio.gather(*sending)
        assert len({generation.id for generation in generations}) == 1
        assert sum(replica.scripted.open_streams for replica in replicas) <= 1
        await replicas[1].engine.stop(VIEWER, generations[0].id)
        assert await stored(database) == (before[0] + number + 1, before[1] + 2 * (number + 1))
    assert sum(replica.scripted.opened_streams for replica in replicas) <= 5 + before[0]


async def test_of_ten_different_ones_with_one_key_the_first_is_sent(
    database: Database, replicas: list[House]
) -> None:
    drafts = [replace(DRAFT, text=f"hello {number}") for number in range(10)]
    sending = (sent(replicas[number % 2], draft) for number, draft in enumerate(drafts))
    outcomes = await asyncio.gather(*sending, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, ChatError)]
    assert [error.code for error in refused] == [ErrorCode.CLIENT_KEY_REUSED] * 9
    assert await stored(database) == (1, 2)


@pytest.mark.parametrize(
    "other",
    [
        replace(DRAFT, text="hello!"),
        replace(DRAFT, model="scripted:text no"),
        replace(DRAFT, model=None),
        replace(DRAFT, system_prompt="Be brief."),
        replace(DRAFT, conversation_id=uuid4()),
        replace(DRAFT, options=GenerationOptions(temperature=0.0)),
        replace(DRAFT, options=GenerationOptions(stop=("x",))),
    ],
)
async def test_another_message_is_refused(database: Database, replicas: list[House], other: Draft) -> None:
    await sent(replicas[0])
    for replica in replicas:
        assert await refusal(replica, other) is ErrorCode.CLIENT_KEY_REUSED
    assert await stored(database) == (1, 2)


async def test_a_message_that_differs_in_what_is_not_kept_is_the_same(house: House) -> None:
    first = await sent(house)
    assert (await sent(house, replace(DRAFT, text="hel\0lo", client_key="mi\0ne"))).id == first.id


async def test_a_key_is_the_viewers_own(house: House) -> None:
    first = await sent(house)
    other = await house.engine.send("somebody else", replace(DRAFT, text="something else"))
    assert other.id != first.id
    assert (await sent(house)).id == first.id


async def test_without_a_key_every_message_is_another(database: Database, house: House) -> None:
    drafts = [replace(DRAFT, client_key=None)] * 2
    first, second = [await sent(house, draft) for draft in drafts]
    assert first.id != second.id
    assert await stored(database) == (2, 4)


async def test_it_is_the_same_when_it_has_ended_and_the_conversation_went_on(replicas: list[House]) -> None:
    first = await sent(replicas[0], replace(DRAFT, model="scripted:text so"))
    await replicas[0].events(first)
    await replicas[0].say("text more", conversation_id=first.conversation_id)
    for replica in replicas:
        again = await sent(replica, replace(DRAFT, model="scripted:text so"))
        assert (again.id, again.status) == (first.id, "completed")


async def test_it_is_found_in_a_conversation_whose_reply_is_being_written(replicas: list[House]) -> None:
    conversation_id = await conversation_of(replicas[0])
    draft = replace(DRAFT, conversation_id=conversation_id)
    first = await sent(replicas[0], draft)
    for replica in replicas:
        assert (await sent(replica, draft)).id == first.id


async def test_it_is_found_while_the_server_takes_no_more(database: Database, bell: Bell) -> None:
    house = House(database, bell)
    async with house.log.running():
        async with house.engine.running(grace_seconds=0):
            first = await sent(house)
        assert (await sent(house)).id == first.id
        assert await refusal(house, replace(DRAFT, client_key="new")) is ErrorCode.OVERLOADED


async def test_it_is_found_where_its_model_is_gone(database: Database, bell: Bell, house: House) -> None:
    first = await sent(house)
    async with opened(House(database, bell, provider=Forgetful(PATIENT))) as elsewhere:
        assert (await sent(elsewhere)).id == first.id
        with pytest.raises(ModelNotFound):
            await sent(elsewhere, replace(DRAFT, client_key="new"))


async def test_a_sender_that_vanished_finds_what_it_sent(database: Database, house: House) -> None:
    for turns in range(0, 60, 3):
        draft = replace(DRAFT, client_key=f"key {turns}")
        sending = asyncio.create_task(sent(house, draft))
        for _ in range(turns):
            await asyncio.sleep(0)
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        again = await sent(house, draft)
        assert (await sent(house, draft)).id == again.id
        await house.engine.stop(VIEWER, again.id)
    assert await stored(database) == (20, 40)


async def test_a_key_whose_conversation_is_deleted_is_free_again(database: Database, house: House) -> None:
    first = await sent(house)
    await house.engine.stop(VIEWER, first.id)
    await database.execute("DELETE FROM conversations")
    assert (await sent(house, replace(DRAFT, text="something else"))).id != first.id


@pytest.mark.parametrize("key", ["", "\0", "x" * 201])
async def test_a_key_that_is_none_is_refused(database: Database, house: House, key: str) -> None:
    with pytest.raises(ChatError, match="clientKey has") as refused:
        await sent(house, replace(DRAFT, client_key=key))
    assert refused.value.code is ErrorCode.BAD_INPUT
    assert await stored(database) == (0, 0)


@pytest.mark.parametrize("key", ["x", "x" * 200, " ", "ключ 🗝", "'; DROP TABLE generations; --"])
async def test_any_other_key_is_taken_as_it_is(house: House, key: str) -> None:
    first = await sent(house, replace(DRAFT, client_key=key))
    assert (await sent(house, replace(DRAFT, client_key=key))).id == first.id
    assert (await sent(house, replace(DRAFT, client_key=key[:-1] + "y"))).id != first.id
