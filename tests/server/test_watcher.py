"""Everybody who watches a conversation is told all that happens in it, by one look for all of them."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from uuid import UUID, uuid4

import pytest

from db import conversations, deletion
from db.bell import APPLICATION_NAME, Bell, Channel, ring
from db.conversations import Conversation, NewConversation
from db.database import Database, DatabaseUnavailable
from server.conversation_events import (
    ConversationChanged,
    ConversationDeleted,
    GenerationBegan,
    GenerationEnded,
)
from server.watcher import Watcher
from tests.server.begin import VIEWER
from tests.server.eyes import (
    Asked,
    Eyes,
    are_answered,
    are_waiting,
    begun,
    end,
    eyes,
    ids,
    is_connected,
    kinds,
    rename,
    titles,
    watching,
)


@pytest.fixture
async def watcher(database: Database, bell: Bell) -> AsyncIterator[Watcher]:
    """One that hears of changes, and would not find them by looking from time to time."""
    async with watching(database, bell) as watcher:
        yield watcher


@pytest.fixture
async def conversation(database: Database) -> Conversation:
    new = NewConversation(uuid4(), VIEWER, "A title", None, None, None)
    return await conversations.create(database, new)


async def test_what_is_the_case_is_told_first(
    database: Database, watcher: Watcher, conversation: Conversation
) -> None:
    first = await begun(database, conversation)
    await end(database, first)
    running = [await begun(database, conversation, first.message_id) for _ in range(2)]
    await end(database, await begun(database, conversation, first.message_id))
    async with eyes(watcher, conversation.id) as one:
        assert kinds(await one.take(3)) == ["ConversationChanged", "GenerationBegan", "GenerationBegan"]
        assert ids(one.seen) == [generation.id for generation in running]
        await rename(database, conversation.id, "After it")
        assert titles([await one.next()]) == ["After it"]


async def test_what_happens_is_told_as_it_happens(
    database: Database, watcher: Watcher, conversation: Conversation
) -> None:
    async with eyes(watcher, conversation.id) as one:
        assert titles([await one.next()]) == ["A title"]
        generation = await begun(database, conversation)
        changed, began = await one.take(2)
        assert isinstance(changed, ConversationChanged)
        assert changed.conversation.head_id == generation.message_id
        assert began == GenerationBegan(generation)
        await end(database, generation)
        changed, ended = await one.take(2)
        assert isinstance(changed, ConversationChanged)
        assert isinstance(ended, GenerationEnded)
        assert ended.generation
        assert (ended.generation_id, ended.generation.status) == (generation.id, "stopped")
        await deletion.delete_below(database, VIEWER, generation.user_message_id)
        changed = await one.next()
        assert isinstance(changed, ConversationChanged)
        assert changed.conversation.head_id == generation.user_message_id
        await deletion.delete_conversation(database, VIEWER, conversation.id)
        assert await one.next() == ConversationDeleted(conversation.id)
        with pytest.raises(StopAsyncIteration):
            await one.next()


async def test_who_was_slow_is_told_what_it_all_comes_to(
    database: Database, watcher: Watcher, conversation: Conversation
) -> None:
    async with eyes(watcher, conversation.id) as slow, eyes(watcher, conversation.id) as quick:
        await slow.next()
        await quick.next()
        first = await begun(database, conversation)
        await slow.take(2)
        await end(database, first)
        for number in range(3):
            await end(database, await begun(database, conversation))
            await rename(database, conversation.id, f"{number}")
            while titles(quick.seen)[-1] != f"{number}" or len(quick.of(GenerationEnded)) < number + 2:
                await quick.next()
        last = await begun(database, conversation)
        events = await slow.take(9)
        assert titles(events) == ["2"]
        assert kinds(events[1:]) == [
            "GenerationEnded",
            *["GenerationBegan", "GenerationEnded"] * 3,
            "GenerationBegan",
        ]
        assert (ids(events)[0], ids(events)[-1]) == (first.id, last.id)
        assert ids(events)[1:-1:2] == ids(events)[2:-1:2]
        assert ids(quick.seen)[:8] == [first.id] * 2 + ids(events)[1:-1]


async def test_one_look_serves_the_slow_and_the_quick(
    database: Database, bell: Bell, conversation: Conversation
) -> None:
    asked = Asked(database)
    async with (
        watching(asked, bell, poll_seconds=0.01) as watcher,
        eyes(watcher, conversation.id) as slow,
        eyes(watcher, conversation.id) as quick,
    ):
        await slow.next()
        await quick.next()
        first = await begun(database, conversation)
        await quick.take(2)
        await end(database, first)
        await quick.take(2)
        second = await begun(database, conversation)
        await quick.take(2)
        asked.is_away = True
        telling = asyncio.gather(quick.next(), slow.next())
        await are_waiting(watcher, 2)
        await rename(database, conversation.id, "For both")
        asked.is_away = False
        assert titles([*await telling]) == ["For both", "For both"]
        assert ids(await slow.take(3)) == [first.id, first.id, second.id]
        await end(database, second)
        assert ids([*await slow.take(2), *await quick.take(2)]) == [second.id, second.id]


async def test_of_a_reply_that_was_deleted_meanwhile_it_is_told_that_it_ended(
    database: Database, watcher: Watcher, conversation: Conversation
) -> None:
    async with eyes(watcher, conversation.id) as one:
        await one.next()
        first = await begun(database, conversation)
        await one.take(2)
        await end(database, first)
        await deletion.delete_below(database, VIEWER, first.user_message_id)
        changed, ended = await one.take(2)
        assert isinstance(changed, ConversationChanged)
        assert ended == GenerationEnded(first.id, conversation.id, None)

        second = await begun(database, conversation)
        await one.take(2)
        await end(database, second)
        await deletion.delete_conversation(database, VIEWER, conversation.id)
        assert await one.take(2) == [
            GenerationEnded(second.id, conversation.id, None),
            ConversationDeleted(conversation.id),
        ]


async def test_only_ones_own_can_be_watched(
    database: Database, watcher: Watcher, conversation: Conversation
) -> None:
    for viewer_id, id_ in (("somebody else", conversation.id), (VIEWER, uuid4())):
        with pytest.raises(LookupError):
            await watcher.watch(viewer_id, id_)


async def test_nothing_is_asked_while_nobody_watches_and_one_look_serves_all(
    database: Database, bell: Bell, conversation: Conversation
) -> None:
    asked = Asked(database)
    other = await conversations.create(database, NewConversation(uuid4(), VIEWER, "Other", None, None, None))
    await is_connected(bell)
    async with watching(asked, bell) as watcher, AsyncExitStack() as stack:
        async with database.transaction() as connection:
            await ring(connection, Channel.CONVERSATIONS)
        crowd = [await stack.enter_async_context(eyes(watcher, conversation.id)) for _ in range(100)]
        crowd += [await stack.enter_async_context(eyes(watcher, other.id)) for _ in range(100)]
        for one in crowd:
            await one.next()
        assert not any("unnest" in statement for statement in asked.statements), "nobody waits yet"
        waiting = [asyncio.create_task(one.next()) for one in crowd]
        await are_waiting(watcher, 200)
        await are_answered(watcher, asked)

        asked.statements.clear()
        async with database.transaction() as connection:
            await ring(connection, Channel.CONVERSATIONS)
        await asked.has_been_asked(1)
        await are_answered(watcher, asked)
        assert len(asked.statements) == 1, "what has changed: nothing"

        asked.statements.clear()
        generation = await begun(database, conversation)
        await asyncio.wait(waiting[:100])
        assert [ids([await one.next()]) for one in crowd[:100]] == [[generation.id]] * 100
        assert len(asked.statements) == 2, "what has changed, and which replies began or ended there"
        for task in waiting[100:]:
            task.cancel()
        await asyncio.wait(waiting[100:])


async def test_who_goes_leaves_nothing_behind(
    database: Database, watcher: Watcher, conversation: Conversation
) -> None:
    """Whenever it goes, also while a look is being taken for it."""
    for steps in range(6):
        async with aclosing(await watcher.watch(VIEWER, conversation.id)) as events:
            one = Eyes(events)
            reading = asyncio.create_task(one.to_end())
            await are_waiting(watcher, 1)
            (waiting,) = watcher._waiting
            watcher._is_due.set()
            for _ in range(steps):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait({reading}, timeout=1)
            assert reading.cancelled()
            assert waiting.sight.cancelled()
        assert watcher._waiting == set()
    async with eyes(watcher, conversation.id) as one:
        await one.next()
        await rename(database, conversation.id, "Still told")
        assert titles([await one.next()]) == ["Still told"]


async def test_a_bell_that_is_cut_delays_little(
    database: Database, database_url: str, conversation: Conversation
) -> None:
    async with Bell.listening(database_url) as bell, watching(database, bell) as watcher:
        await is_connected(bell)
        async with eyes(watcher, conversation.id) as one:
            await one.next()
            telling = asyncio.create_task(one.next())
            await are_waiting(watcher, 1)
            await database.execute(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = $1
                """,
                APPLICATION_NAME,
            )
            await rename(database, conversation.id, "Unheard")
            assert titles([await telling]) == ["Unheard"]


async def test_without_a_bell_it_looks_from_time_to_time(
    database: Database, conversation: Conversation
) -> None:
    async with (
        Bell.listening("postgresql://nobody@127.0.0.1:1/none") as bell,
        watching(database, bell, poll_seconds=0.02) as watcher,
        eyes(watcher, conversation.id) as one,
    ):
        await one.next()
        await rename(database, conversation.id, "Unheard")
        assert titles([await one.next()]) == ["Unheard"]
        assert bell.rings(Channel.CONVERSATIONS) == 0


async def test_a_database_that_is_away_is_waited_for(
    database: Database, bell: Bell, conversation: Conversation
) -> None:
    asked = Asked(database)
    async with (
        watching(asked, bell, poll_seconds=0.01) as watcher,
        eyes(watcher, conversation.id) as one,
    ):
        await one.next()
        asked.is_away = True
        telling = asyncio.create_task(one.next())
        await rename(database, conversation.id, "In vain")
        asked.statements.clear()
        await asked.has_been_asked(3)
        assert not telling.done()
        asked.is_away = False
        assert titles([await telling]) == ["In vain"]


async def test_a_database_that_stays_away_is_told(
    database: Database, bell: Bell, conversation: Conversation
) -> None:
    asked = Asked(database)
    async with (
        watching(asked, bell, poll_seconds=0.01, patience_seconds=0.05) as watcher,
        eyes(watcher, conversation.id) as one,
        eyes(watcher, conversation.id) as other,
    ):
        await one.next()
        await other.next()
        asked.is_away = True
        for gone in await asyncio.gather(one.next(), other.next(), return_exceptions=True):
            assert isinstance(gone, DatabaseUnavailable)
        asked.is_away = False
        async with eyes(watcher, conversation.id) as again:
            await again.next()
            await rename(database, conversation.id, "Back")
            assert titles([await again.next()]) == ["Back"]


@pytest.mark.parametrize("seed", range(5))
async def test_nothing_is_missed_or_told_twice_whatever_the_pace(
    database: Database, bell: Bell, conversation: Conversation, seed: int
) -> None:
    """Several writers at once, on two replicas of the watcher, and readers who take breaks."""
    root = await begun(database, conversation)
    await end(database, root)
    began: list[UUID] = []
    chance = random.Random(seed)  # noqa: S311 - the same chances each time

    async def write() -> None:
        for number in range(8):
            generation = await begun(database, conversation, root.message_id)
            began.append(generation.id)
            for _ in range(chance.randrange(3)):
                await rename(database, conversation.id, f"{number} {chance.random()}")
            await end(database, generation)

    async def read(one: Eyes) -> None:
        while len(one.of(GenerationEnded)) < 24 or titles(one.seen)[-1] != "the end":
            await one.next()
            for _ in range(chance.choice((0, 0, 1, 20, 400))):
                await asyncio.sleep(0)

    async with watching(database, bell) as here, watching(database, bell) as there, AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(eyes(watcher, conversation.id))
            for watcher in (here, there)
            for _ in range(3)
        ]
        async with asyncio.TaskGroup() as reading:
            for one in readers:
                reading.create_task(read(one))
            async with asyncio.TaskGroup() as writing:
                for _ in range(3):
                    writing.create_task(write())
            await rename(database, conversation.id, "the end")
    for one in readers:
        assert sorted(ids(one.of(GenerationBegan))) == sorted(began)
        assert sorted(ids(one.of(GenerationEnded))) == sorted(began)
        for id_ in began:
            first, second = [event for event in one.seen if ids([event]) == [id_]]
            assert isinstance(first, GenerationBegan)
            assert isinstance(second, GenerationEnded)
        states = one.of(ConversationChanged)
        assert len(set(states)) == len(states), "none is told twice"
