"""Sending and stopping by POST."""

from datetime import datetime
from uuid import uuid4

import pytest

from tests.graphql_client import Failed
from tests.server.api.conftest import House

ADD = """
mutation ($input: MessageInput!) {
  addMessage(input: $input) {
    id conversationId parentId generationId role content reasoning status finishReason model provider
    createdAt
    usage { promptTokens completionTokens totalTokens source }
    error { code message retryable provider model }
  }
}
"""
SEND = "mutation ($input: MessageInput!) { sendMessage(input: $input) { id status } }"
STOP = """
mutation ($id: ID!) {
  stopGeneration(id: $id) { id status model startedAt finishedAt message { content } conversation { id } }
}
"""


async def test_send_message_returns_while_the_reply_is_to_come(house: House) -> None:
    generation = await house.send("words 2;stall")
    assert generation["status"] in {"QUEUED", "STREAMING"}
    question = await house.client.ask(
        """
        query ($id: ID!) {
          node(id: $id) { ... on Message { content parentId generationId usage { source } } }
        }
        """,
        id=generation["message"]["parentId"],
    )
    assert question == {"content": "hello", "parentId": None, "generationId": None, "usage": None}


async def test_add_message_waits_for_the_whole_reply(house: House) -> None:
    reply = await house.client.ask(ADD, input={"message": "a b", "model": "scripted:reason Hm;words 3"})
    assert reply["content"] == " w1 w2 w3"
    assert reply["reasoning"] == "Hm"
    assert (reply["role"], reply["status"], reply["finishReason"]) == ("ASSISTANT", "COMPLETED", "STOP")
    assert (reply["model"], reply["provider"]) == ("scripted:reason Hm;words 3", "scripted")
    assert reply["usage"] == {
        "promptTokens": 2,
        "completionTokens": 4,
        "totalTokens": 6,
        "source": "PROVIDER",
    }
    assert reply["error"] is None
    assert reply["parentId"] is not None
    assert datetime.fromisoformat(reply["createdAt"]).utcoffset() is not None
    again = await house.client.ask(
        ADD,
        input={"message": "c", "model": "scripted:words 1", "conversationId": reply["conversationId"]},
    )
    assert again["conversationId"] == reply["conversationId"]
    generation = await house.client.ask(
        "query ($id: ID!) { generation(id: $id) { message { id } } }", id=again["generationId"]
    )
    assert generation["message"]["id"] == again["id"]


async def test_add_message_returns_a_failed_reply_too(house: House) -> None:
    model = "scripted:words 2;cut"
    reply = await house.client.ask(ADD, input={"message": "a", "model": model})
    assert (reply["status"], reply["content"]) == ("FAILED", "w1 w2")
    assert reply["error"] == {
        "code": "STREAM_BROKEN",
        "message": "scripted: the connection was cut",
        "retryable": True,
        "provider": "scripted",
        "model": model,
    }


async def test_what_is_wrong_with_a_message_is_an_error_with_a_code(house: House) -> None:
    for mutation in (ADD, SEND):
        with pytest.raises(Failed) as failed:
            await house.client.ask(mutation, input={"message": "a", "model": "scripted:sing"})
        assert failed.value.data is None
        assert failed.value.code == "MODEL_NOT_FOUND"
        assert "sing" in failed.value.message
    assert await house.count("messages") == 0


async def test_a_stop_returns_the_ended_generation(house: House) -> None:
    sent = await house.send("words 2;stall")
    stopped = await house.client.ask(STOP, id=sent["id"])
    assert (stopped["id"], stopped["status"]) == (sent["id"], "STOPPED")
    assert stopped["startedAt"] < stopped["finishedAt"]
    assert stopped["conversation"] == sent["conversation"]
    assert stopped["model"] == "scripted:words 2;stall"
    assert house.scripted.open_streams == 0
    assert await house.client.ask(STOP, id=sent["id"]) == stopped


async def test_a_stop_of_what_has_ended_changes_nothing(house: House) -> None:
    sent = await house.say("words 2")
    stopped = await house.client.ask(STOP, id=sent["id"])
    assert (stopped["status"], stopped["message"]["content"]) == ("COMPLETED", "w1 w2")


async def test_only_ones_own_generations_can_be_stopped(house: House) -> None:
    sent = await house.send("words 2;stall")
    house.viewer_id = "somebody else"
    for id_, code in ((sent["id"], "NOT_FOUND"), (str(uuid4()), "NOT_FOUND"), ("?", "BAD_INPUT")):
        with pytest.raises(Failed) as failed:
            await house.client.ask(STOP, id=id_)
        assert failed.value.code == code
    assert house.scripted.open_streams == 1
