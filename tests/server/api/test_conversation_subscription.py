"""What other tabs and devices do in a conversation, as its watchers see it on whichever server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from db.bell import APPLICATION_NAME, Bell
from db.database import Database
from tests.event_stream import COMPLETE, event_stream, events
from tests.graphql_client import Json, Operation, Refused, Socket
from tests.server.api.conftest import QUICK, House, opened

WATCH = """
subscription ($id: ID!) {
  conversation(id: $id) {
    __typename conversationId
    ... on ConversationChanged { conversation { title systemPrompt model archived updatedAt } }
    ... on GenerationBegan { generationId generation { id model status } }
    ... on GenerationEnded { generationId generation { status finishedAt } }
  }
}
"""
UPDATE = """
mutation ($id: ID!, $title: String, $systemPrompt: String, $archived: Boolean) {
  updateConversation(id: $id, title: $title, systemPrompt: $systemPrompt, archived: $archived) { id }
}
"""
STOP = "mutation ($id: ID!) { stopGeneration(id: $id) { status } }"
DELETE_AFTER = "mutation ($id: ID!) { deleteMessagesAfter(id: $id) }"
DELETE = "mutation ($id: ID!) { deleteConversation(id: $id) }"
LISTENS_ONLY = replace(QUICK, poll_seconds=60.0)


@pytest.fixture
async def here(database: Database, bell: Bell) -> AsyncIterator[House]:
    """One server, which would not find what happens by looking from time to time."""
    async with opened(House(database, bell, LISTENS_ONLY)) as house:
        yield house


@pytest.fixture
async def there(database: Database, database_url: str) -> AsyncIterator[House]:
    """Another one on the same database."""
    async with Bell.listening(database_url) as bell, opened(House(database, bell, LISTENS_ONLY)) as house:
        yield house


async def make(house: House, **more: Any) -> str:
    document = """
    mutation ($title: String, $model: String) { createConversation(title: $title, model: $model) { id } }
    """
    made = await house.client.ask(document, **more)
    id_: str = made["id"]
    return id_


async def until(watching: Operation, typename: str, **fields: Any) -> Json:
    """The first event of this type that has these values, or whose conversation or generation has."""
    async with aclosing(watching.events()) as coming:
        async for event in coming:
            inner = event.get("conversation") or event.get("generation") or {}
            if event["__typename"] == typename and fields.items() <= (event | inner).items():
                assert isinstance(event, dict)
                return event
    raise AssertionError(f"no {typename} with {fields}")


async def watch(socket: Socket, id_: str) -> Operation:
    """A subscription that has told what is the case."""
    watching = await socket.subscribe(WATCH, id=id_)
    (first,) = await watching.until("ConversationChanged")
    assert first["conversationId"] == id_
    return watching


async def test_what_is_the_case_is_told_first(here: House) -> None:
    sent = await here.send("stall", "Of mice")
    async with here.client.socket() as socket:
        watching = await socket.subscribe(WATCH, id=sent["conversation"]["id"])
        changed, began = await watching.until("GenerationBegan")
        assert changed == {
            "__typename": "ConversationChanged",
            "conversationId": sent["conversation"]["id"],
            "conversation": {
                "title": "Of mice",
                "systemPrompt": None,
                "model": "scripted:stall",
                "archived": False,
                "updatedAt": changed["conversation"]["updatedAt"],
            },
        }
        assert began["generationId"] == began["generation"]["id"] == sent["id"]
        assert began["generation"]["status"] in {"QUEUED", "WAITING", "STREAMING"}
        await watching.complete()


async def test_a_message_sent_elsewhere_is_seen_to_begin_and_to_end(here: House, there: House) -> None:
    """Together with the generation's own events it is everything that another tab shows."""
    id_ = await make(here)
    async with here.client.socket() as socket:
        watching = await watch(socket, id_)
        sent = await there.send("words 3 every 10ms;wait 1ms", "Of mice", conversationId=id_)
        await until(watching, "ConversationChanged", title="Of mice")
        began = await until(watching, "GenerationBegan", generationId=sent["id"])
        assert began["generation"]["model"] == "scripted:words 3 every 10ms;wait 1ms"
        text = "subscription ($id: ID!) { generation(id: $id) { __typename ... on TextDelta { text } } }"
        told = await (await socket.subscribe(text, id=sent["id"])).rest()
        assert "".join(event.get("text", "") for event in told) == "w1 w2 w3"
        ended = await until(watching, "GenerationEnded", generationId=sent["id"], status="COMPLETED")
        assert ended["generation"]["finishedAt"]
        await watching.complete()


async def test_a_stop_elsewhere_is_seen(here: House, there: House) -> None:
    sent = await here.send("words 2;stall")
    async with here.client.socket() as one, there.client.socket() as other:
        watching = [await watch(socket, sent["conversation"]["id"]) for socket in (one, other)]
        assert (await there.client.ask(STOP, id=sent["id"]))["status"] == "STOPPED"
        for operation in watching:
            await until(operation, "GenerationEnded", generationId=sent["id"], status="STOPPED")


@pytest.mark.parametrize("change", [{"title": "New"}, {"systemPrompt": "Be brief."}, {"archived": True}])
async def test_changes_made_elsewhere_are_seen(here: House, there: House, change: Json) -> None:
    id_ = await make(here, title="Old")
    async with here.client.socket() as one, there.client.socket() as other:
        watching = [await watch(socket, id_) for socket in (one, other)]
        await there.client.ask(UPDATE, id=id_, **change)
        for operation in watching:
            await until(operation, "ConversationChanged", **change)


async def test_deleted_messages_are_seen_by_where_the_head_is(here: House, there: House) -> None:
    first = await here.say("text one", "1")
    id_ = first["conversation"]["id"]
    await here.say("text two", "2", conversationId=id_)
    query = """
    subscription ($id: ID!) {
      conversation(id: $id) { ... on ConversationChanged { conversation { head { id } } } }
    }
    """
    async with here.client.socket() as socket:
        watching = await socket.subscribe(query, id=id_)
        async with aclosing(watching.events()) as coming:
            assert (await anext(coming))["conversation"]["head"]["id"] != first["message"]["id"]
            assert await there.client.ask(DELETE_AFTER, id=first["message"]["id"]) == 2
            assert (await anext(coming))["conversation"]["head"]["id"] == first["message"]["id"]


async def test_a_reply_that_is_deleted_is_seen_to_end(here: House, there: House) -> None:
    sent = await here.send("words 2;stall")
    async with here.client.socket() as socket:
        watching = await watch(socket, sent["conversation"]["id"])
        assert await there.client.ask(DELETE_AFTER, id=sent["message"]["parentId"]) == 1
        ended = await until(watching, "GenerationEnded", generationId=sent["id"])
        assert ended["generation"] is None or ended["generation"]["status"] == "STOPPED"


async def test_the_end_of_the_conversation_ends_its_watching(here: House, there: House) -> None:
    sent = await here.send("words 2;stall")
    id_ = sent["conversation"]["id"]
    async with here.client.socket() as one, there.client.socket() as other:
        watching = [await watch(socket, id_) for socket in (one, other)]
        assert await there.client.ask(DELETE, id=id_) == id_
        for operation in watching:
            told = await operation.rest()
            assert told[-1] == {"__typename": "ConversationDeleted", "conversationId": id_}
            assert [event["__typename"] for event in told].count("GenerationEnded") == 1


@pytest.mark.parametrize("transport", ["socket", "event stream"])
async def test_what_cannot_be_watched_is_refused(here: House, transport: str) -> None:
    id_ = await make(here)
    here.viewer_id = "somebody else"
    for wrong, code in ((id_, "NOT_FOUND"), (str(uuid4()), "NOT_FOUND"), ("?", "BAD_INPUT")):
        if transport == "socket":
            async with here.client.socket() as socket:
                with pytest.raises(Refused) as refused:
                    await (await socket.subscribe(WATCH, id=wrong)).rest()
                assert refused.value.code == code
        else:
            async with event_stream(here.client, WATCH, id=wrong) as response:
                told, end = [event async for event in events(response)]
            assert (told.payload["data"], end) == (None, COMPLETE)
            assert told.payload["errors"][0]["extensions"]["code"] == code
    assert here.watcher._waiting == set()


async def test_nobody_sees_what_others_do(here: House, there: House) -> None:
    mine, other = await make(here, title="mine"), await make(here, title="other")
    there.viewer_id = "somebody else"
    await there.send("words 1")
    there.viewer_id = here.viewer_id
    async with here.client.socket() as socket:
        watching = await watch(socket, mine)
        await there.say("words 1", conversationId=other)
        await there.client.ask(UPDATE, id=other, title="renamed")
        await there.client.ask(UPDATE, id=mine, title="mine too")
        async with aclosing(watching.events()) as coming:
            changed = await anext(coming)
        assert (changed["conversationId"], changed["conversation"]["title"]) == (mine, "mine too")


async def test_an_event_stream_has_no_ids_and_needs_none(here: House, there: House) -> None:
    """A client that comes back is told what is the case, whatever it had last."""
    id_ = await make(here, title="Old")
    seen = []
    async with (
        event_stream(here.client, WATCH, id=id_, last_event_id="of another stream") as response,
        aclosing(events(response)) as coming,
    ):
        seen.append(await anext(coming))
        await there.client.ask(UPDATE, id=id_, title="New")
        seen.append(await anext(coming))
        await there.client.ask(DELETE, id=id_)
        seen += [event async for event in coming]
    assert [event.value["__typename"] for event in seen[:-1]] == [
        "ConversationChanged",
        "ConversationChanged",
        "ConversationDeleted",
    ]
    assert [event.id for event in seen] == [None] * 4
    assert seen[-1] == COMPLETE


async def test_whoever_goes_is_watched_for_no_longer(here: House) -> None:
    id_ = await make(here)
    async with here.client.socket() as socket:
        watching = await watch(socket, id_)
        await are_waiting(here, 1)
        await watching.complete()
        await are_waiting(here, 0)
        await watch(socket, id_)
        await are_waiting(here, 1)
        socket.drop()
        await are_waiting(here, 0)
    async with event_stream(here.client, WATCH, id=id_) as response, aclosing(events(response)) as coming:
        await anext(coming)
        await are_waiting(here, 1)
    await are_waiting(here, 0)


async def are_waiting(house: House, number: int) -> None:
    async with asyncio.timeout(5):
        while len(house.watcher._waiting) != number:  # noqa: ASYNC110 - what is awaited rings no bell
            await asyncio.sleep(0.001)


async def test_a_lost_wake_up_is_made_up_for(here: House, there: House) -> None:
    id_ = await make(here)
    async with here.client.socket() as socket:
        watching = await watch(socket, id_)
        cut = await here.database.fetch(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = $1
            """,
            APPLICATION_NAME,
        )
        assert len(cut) == 2
        sent = await there.say("words 1", conversationId=id_)
        await until(watching, "GenerationBegan", generationId=sent["id"])
        await until(watching, "GenerationEnded", generationId=sent["id"], status="COMPLETED")
