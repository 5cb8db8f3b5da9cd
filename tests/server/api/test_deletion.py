"""Conversations made, changed and deleted, whole and in part (C10)."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from tests.graphql_client import Failed
from tests.server.api.conftest import House
from tests.server.api.test_subscriptions import WATCH
from tests.server.begin import begin

DELETE_AFTER = "mutation ($id: ID!) { deleteMessagesAfter(id: $id) }"
DELETE = "mutation ($id: ID!) { deleteConversation(id: $id) }"
CREATE = """
mutation ($title: String, $systemPrompt: String, $model: String) {
  createConversation(title: $title, systemPrompt: $systemPrompt, model: $model) {
    id title systemPrompt model provider archived head { id }
  }
}
"""
UPDATE = """
mutation ($id: ID!, $title: String, $systemPrompt: String, $archived: Boolean) {
  updateConversation(id: $id, title: $title, systemPrompt: $systemPrompt, archived: $archived) {
    title systemPrompt archived
  }
}
"""
CONVERSATION = """
query ($id: ID!) {
  conversation(id: $id) { title head { id } messages { edges { node { id content } } } }
}
"""


async def shown(house: House, conversation: Any) -> tuple[str | None, list[str]]:
    """The head's id, and the contents of the messages that lead to it."""
    found = await house.client.ask(CONVERSATION, id=conversation["id"])
    head = found["head"]["id"] if found["head"] else None
    return head, [edge["node"]["content"] for edge in found["messages"]["edges"]]


async def test_what_follows_a_message_goes_in_every_branch(house: House) -> None:
    first = await house.say("text one", "1")
    conversation = first["conversation"]
    more = {"conversationId": conversation["id"]}
    await house.say("text two", "2", **more)
    await house.say("text three", "3", **more)
    await house.say("text other", "2b", **more, parentId=first["message"]["id"])
    assert await house.client.ask(DELETE_AFTER, id=first["message"]["id"]) == 6
    assert await shown(house, conversation) == (first["message"]["id"], ["1", "one"])
    assert (await house.count("messages"), await house.count("generations")) == (2, 1)
    assert await house.count("model_usage_stats") == 4
    assert await house.client.ask(DELETE_AFTER, id=first["message"]["id"]) == 0


async def test_a_head_elsewhere_stays(house: House) -> None:
    first = await house.say("text one", "1")
    more = {"conversationId": first["conversation"]["id"]}
    second = await house.say("text two", "2", **more)
    other = await house.say("text other", "2b", **more, parentId=first["message"]["id"])
    assert await house.client.ask(DELETE_AFTER, id=second["message"]["parentId"]) == 1
    head, contents = await shown(house, first["conversation"])
    assert (head, contents) == (other["message"]["id"], ["1", "one", "2b", "other"])


async def test_a_reply_can_be_deleted_and_asked_for_anew(house: House) -> None:
    first = await house.say("text bad", "1")
    question = first["message"]["parentId"]
    assert await house.client.ask(DELETE_AFTER, id=question) == 1
    assert await shown(house, first["conversation"]) == (question, ["1"])
    again = await house.say("history", "2", conversationId=first["conversation"]["id"])
    assert again["message"]["parentId"] is not None


async def test_what_runs_there_is_stopped_first_and_its_watchers_see_an_end(house: House) -> None:
    sent = await house.send("words 2;stall", "1")
    async with house.client.socket() as socket:
        watching = await socket.subscribe(WATCH, id=sent["id"])
        await house.log.has_readers(1)
        deleting = asyncio.create_task(house.client.ask(DELETE_AFTER, id=sent["message"]["parentId"]))
        payloads = [payload async for payload in watching]
        assert await deleting == 1
        last = payloads[-1]
        assert "errors" in last or last["data"]["generation"]["__typename"] == "GenerationStopped"
        if "errors" in last:
            assert last["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    assert house.scripted.open_streams == 0
    (spent,) = await house.database.fetch("SELECT outcome, completion_tokens FROM model_usage_stats")
    assert dict(spent) == {"outcome": "stopped", "completion_tokens": 2}
    await house.say("text fine", "2", conversationId=sent["conversation"]["id"])


async def test_who_watches_what_another_server_deletes_is_told(house: House) -> None:
    generation, _ = await begin(house.database, owner=uuid4())
    async with house.client.socket() as socket:
        watching = await socket.subscribe(WATCH, id=str(generation.id))
        await watching.until("GenerationStarted")
        await house.database.execute("DELETE FROM conversations")
        payloads = [payload async for payload in watching]
    assert [error["extensions"]["code"] for error in payloads[-1]["errors"]] == ["NOT_FOUND"]
    assert "was deleted while it was watched" in payloads[-1]["errors"][0]["message"]


async def test_a_conversation_is_deleted_with_all_that_runs_in_it(house: House) -> None:
    await house.say("text kept", "other")
    first = await house.say("text one", "1")
    conversation = first["conversation"]
    await house.send("words 2;stall", "2", conversationId=conversation["id"])
    await house.send(
        "words 2;stall", "2b", conversationId=conversation["id"], parentId=first["message"]["id"]
    )
    assert await house.client.ask(DELETE, id=conversation["id"]) == conversation["id"]
    assert await house.client.ask(CONVERSATION, id=conversation["id"]) is None
    assert house.scripted.open_streams == 0
    assert (await house.count("messages"), await house.count("generation_attempts")) == (2, 1)
    assert await house.count("model_usage_stats") == 4
    with pytest.raises(Failed) as failed:
        await house.client.ask(DELETE, id=conversation["id"])
    assert failed.value.code == "NOT_FOUND"


async def test_two_who_delete_the_same_both_get_an_answer(house: House) -> None:
    sent = await house.send("words 2;stall", "1")
    counts = await asyncio.gather(
        *(house.client.ask(DELETE_AFTER, id=sent["message"]["parentId"]) for _ in range(4))
    )
    assert sorted(counts) == [0, 0, 0, 1]


async def test_only_ones_own_can_be_deleted_or_changed(house: House) -> None:
    sent = await house.send("words 2;stall", "1")
    house.viewer_id = "somebody else"
    message, conversation = sent["message"]["parentId"], sent["conversation"]["id"]
    for document, id_ in ((DELETE_AFTER, message), (DELETE, conversation), (UPDATE, conversation)):
        for wrong, code in ((id_, "NOT_FOUND"), (str(uuid4()), "NOT_FOUND"), ("?", "BAD_INPUT")):
            with pytest.raises(Failed) as failed:
                await house.client.ask(document, id=wrong)
            assert failed.value.code == code
    assert house.scripted.open_streams == 1
    assert await house.count("messages") == 2


async def test_a_conversation_can_begin_without_a_message(house: House) -> None:
    made = await house.client.ask(CREATE, title="Of mice", systemPrompt="Be brief.", model="scripted:history")
    assert made == {
        "id": made["id"],
        "title": "Of mice",
        "systemPrompt": "Be brief.",
        "model": "scripted:history",
        "provider": "scripted",
        "archived": False,
        "head": None,
    }
    document = """
    mutation ($input: MessageInput!) { addMessage(input: $input) { content model conversationId } }
    """
    reply = await house.client.ask(document, input={"message": "Hi", "conversationId": made["id"]})
    assert (reply["model"], reply["conversationId"]) == ("scripted:history", made["id"])
    assert '"Be brief."' in reply["content"]
    assert (await house.client.ask(CONVERSATION, id=made["id"]))["title"] == "Of mice"


async def test_a_conversation_without_a_title_gets_that_of_its_first_message(house: House) -> None:
    made = await house.client.ask(CREATE)
    assert (made["title"], made["systemPrompt"], made["model"]) == ("", None, None)
    for message in ("Of mice\nand men", "and more"):
        await house.say("words 1", message, conversationId=made["id"])
    assert (await house.client.ask(CONVERSATION, id=made["id"]))["title"] == "Of mice"


async def test_a_conversation_is_changed_as_far_as_is_said(house: House) -> None:
    made = await house.client.ask(CREATE, title="Old", systemPrompt="Be brief.")
    id_ = made["id"]
    changed = await house.client.ask(UPDATE, id=id_, title="New\0")
    assert changed == {"title": "New", "systemPrompt": "Be brief.", "archived": False}
    changed = await house.client.ask(UPDATE, id=id_, systemPrompt="", archived=True, title=None)
    assert changed == {"title": "New", "systemPrompt": None, "archived": True}
    assert await house.client.ask(UPDATE, id=id_) == changed


async def test_what_makes_no_conversation(house: House) -> None:
    for variables, code, says in (
        ({"title": "x" * 201}, "BAD_INPUT", "title has 201 characters; 200 is the most"),
        ({"systemPrompt": "x" * 400_001}, "BAD_INPUT", "systemPrompt has 400001 characters"),
        ({"model": "scripted:sing"}, "MODEL_NOT_FOUND", "sing"),
    ):
        with pytest.raises(Failed) as failed:
            await house.client.ask(CREATE, **variables)
        assert failed.value.code == code
        assert says in failed.value.message
    assert await house.count("conversations") == 0
