"""Watching replies over graphql-transport-ws."""

import asyncio
import json
import socket as socket_module
from typing import Any
from uuid import UUID, uuid4

import pytest

from db.bell import Bell
from db.database import Database, DatabaseUnavailable, Record
from tests.graphql_client import Json, Refused, Socket
from tests.server.api.conftest import House, opened

EVENT = """
fragment Event on StreamEvent {
  __typename generationId seq
  ... on GenerationStarted {
    model
    conversation { id title head { id } }
    userMessage { id role content parentId status }
    message { id role status parentId model provider }
  }
  ... on PhaseChanged { phase detail progress }
  ... on ReasoningDelta { text fromSeq }
  ... on TextDelta { text fromSeq }
  ... on GenerationCompleted { finishReason message { ...Reply } usage { ...Spent } }
  ... on GenerationStopped { message { ...Reply } usage { ...Spent } }
  ... on GenerationFailed {
    message { ...Reply } usage { ...Spent } error { code message retryable provider model }
  }
}
fragment Reply on Message { id content reasoning status finishReason error { code message retryable } }
fragment Spent on Usage {
  promptTokens completionTokens totalTokens source firstTokenMs durationMs tokensPerSecond
}
"""
SEND = "subscription ($input: MessageInput!) { streamMessage(input: $input) { ...Event } }" + EVENT
WATCH = "subscription ($id: ID!, $after: Int) { generation(id: $id, after: $after) { ...Event } }" + EVENT


async def stream(socket: Socket, script: str, message: str = "hello", **more: Any) -> list[Json]:
    """All the events of a message that is sent."""
    operation = await socket.subscribe(
        SEND, input={"message": message, "model": f"scripted:{script}", **more}
    )
    return await operation.rest()


def text_of(events: list[Json]) -> str:
    return "".join(event["text"] for event in events if event["__typename"] == "TextDelta")


def first_of(event: Json) -> int:
    """The first number that the event stands for; seq is the last."""
    first: int = event["fromSeq" if "fromSeq" in event else "seq"]
    return first


def covered(events: list[Json]) -> list[int]:
    """The numbers of the log that these events stand for, in their order."""
    return [n for event in events for n in range(first_of(event), event["seq"] + 1)]


async def test_a_message_is_answered_event_by_event(house: House) -> None:
    """S1, C1, C2."""
    async with house.client.socket() as socket:
        events = await stream(socket, "load 10ms;wait 10ms;reason Hm;words 3 every 10ms", "Hi\nthere")
    started, *rest, completed = events
    conversation, question, reply = started["conversation"], started["userMessage"], started["message"]
    assert (started["__typename"], started["seq"], started["model"]) == (
        "GenerationStarted",
        1,
        "scripted:load 10ms;wait 10ms;reason Hm;words 3 every 10ms",
    )
    assert (conversation["title"], conversation["head"]["id"]) == ("Hi", reply["id"])
    assert question == {
        "id": question["id"],
        "role": "USER",
        "content": "Hi\nthere",
        "parentId": None,
        "status": "COMPLETED",
    }
    assert (reply["role"], reply["parentId"]) == ("ASSISTANT", question["id"])
    assert (reply["model"], reply["provider"]) == (started["model"], "scripted")
    phases = [event for event in rest if event["__typename"] == "PhaseChanged"]
    assert [(p["phase"], p["detail"], p["progress"]) for p in phases] == [
        ("LOADING_MODEL", None, None),
        ("WAITING", None, None),
    ]
    assert [e["text"] for e in rest if e["__typename"] == "ReasoningDelta"] == ["Hm"]
    assert text_of(rest) == " w1 w2 w3"
    assert covered(events) == list(range(1, completed["seq"] + 1))
    assert {event["generationId"] for event in events} == {started["generationId"]}

    assert (completed["__typename"], completed["finishReason"]) == ("GenerationCompleted", "STOP")
    assert completed["message"] == {
        "id": reply["id"],
        "content": " w1 w2 w3",
        "reasoning": "Hm",
        "status": "COMPLETED",
        "finishReason": "STOP",
        "error": None,
    }
    usage = completed["usage"]
    assert (usage["promptTokens"], usage["completionTokens"], usage["totalTokens"]) == (2, 4, 6)
    assert usage["source"] == "PROVIDER"
    assert 20 <= usage["firstTokenMs"] < usage["durationMs"]
    assert usage["tokensPerSecond"] == pytest.approx(3_000 / (usage["durationMs"] - usage["firstTokenMs"]))


async def test_the_next_message_carries_the_conversation(house: House) -> None:
    async with house.client.socket() as socket:
        first = await stream(socket, "text Hello!", "one", systemPrompt="Be brief.")
        conversation_id = first[0]["conversation"]["id"]
        second = await stream(socket, "history", "two", conversationId=conversation_id)
        branch = await stream(
            socket,
            "history",
            "three",
            conversationId=conversation_id,
            parentId=first[-1]["message"]["id"],
        )
    past = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Hello!"},
    ]
    assert json.loads(text_of(second)) == [*past, {"role": "user", "content": "two"}]
    assert json.loads(text_of(branch)) == [*past, {"role": "user", "content": "three"}]


async def test_options_reach_the_model(house: House) -> None:
    async with house.client.socket() as socket:
        events = await stream(socket, "words 5", options={"maxTokens": 3, "temperature": 0, "stop": ["\0x"]})
    assert events[-1]["finishReason"] == "LENGTH"
    stored = await house.database.fetchval("SELECT options FROM generations")
    assert stored == {"max_tokens": 3, "temperature": 0.0, "stop": ["x"]}


async def test_a_model_without_prefix_and_a_default_model(house: House) -> None:
    async with house.client.socket() as socket:
        bare = await socket.subscribe(SEND, input={"message": "a", "model": "words 2"})
        assert (await bare.rest())[0]["model"] == "scripted:words 2"
        default = await socket.subscribe(SEND, input={"message": "a"})
        (started,) = await default.until("GenerationStarted")
        assert started["model"] == "scripted:words 60 every 20ms"
        await default.complete()


async def test_a_stop_in_mid_answer_keeps_the_text(house: House) -> None:
    """C3."""
    async with house.client.socket() as socket:
        operation = await socket.subscribe(SEND, input={"message": "a", "model": "scripted:words 3;stall"})
        events = await operation.until("TextDelta")
        id_ = events[0]["generationId"]
        stopped = await house.client.ask(
            "mutation ($id: ID!) { stopGeneration(id: $id) { id status finishedAt message { status } } }",
            id=id_,
        )
        assert (stopped["id"], stopped["status"]) == (id_, "STOPPED")
        assert stopped["message"]["status"] == "STOPPED"
        events += await operation.rest()
    assert events[-1]["__typename"] == "GenerationStopped"
    assert events[-1]["message"]["status"] == "STOPPED"
    assert events[-1]["message"]["content"] == text_of(events) == "w1 w2 w3"
    assert events[-1]["usage"]["completionTokens"] == 3
    assert events[-1]["usage"]["source"] == "ESTIMATED"


async def test_a_failure_in_mid_answer_keeps_the_text(house: House) -> None:
    async with house.client.socket() as socket:
        events = await stream(socket, "words 4;cut")
    failed = events[-1]
    assert failed["__typename"] == "GenerationFailed"
    assert failed["error"] == {
        "code": "STREAM_BROKEN",
        "message": "scripted: the connection was cut",
        "retryable": True,
        "provider": "scripted",
        "model": "scripted:words 4;cut",
    }
    assert failed["message"]["content"] == text_of(events) == "w1 w2 w3 w4"
    assert failed["message"]["status"] == "FAILED"
    assert failed["message"]["error"]["code"] == "STREAM_BROKEN"


async def test_a_failure_before_the_first_token_is_an_event(house: House) -> None:
    async with house.client.socket() as socket:
        events = await stream(socket, "429 retry-after 2s")
    assert [event["__typename"] for event in events] == ["GenerationStarted", "GenerationFailed"]
    assert events[-1]["error"]["code"] == "OVERLOADED"
    assert await house.count("messages") == 2


@pytest.mark.parametrize("after", [0, 1, 3, 5, 100])
async def test_a_generation_is_replayed_from_any_number(house: House, after: int) -> None:
    async with house.client.socket() as socket:
        events = await stream(socket, "words 3 every 10ms;wait 1ms;words 2 every 10ms")
        last = events[-1]["seq"]
        operation = await socket.subscribe(WATCH, id=events[0]["generationId"], after=after)
        replayed = await operation.rest()
    assert replayed[-1] == events[-1]
    assert covered(replayed) == (list(range(after + 1, last + 1)) if after < last else [last])


async def test_a_running_generation_is_replayed_and_then_followed(house: House) -> None:
    async with house.client.socket() as socket, house.client.socket() as other:
        first = await socket.subscribe(SEND, input={"message": "a", "model": "scripted:words 20 every 10ms"})
        seen = await first.until("TextDelta")
        seen_before = seen[-1]["seq"]
        resumed = await other.subscribe(WATCH, id=seen[0]["generationId"], after=seen_before)
        second = await resumed.rest()
        seen += await first.rest()
    assert covered(second) == list(range(seen_before + 1, second[-1]["seq"] + 1))
    assert second[-1] == seen[-1]
    assert seen[1]["text"] + text_of(second) == text_of(seen) == seen[-1]["message"]["content"]


async def test_two_watchers_on_one_socket_see_the_same_text(house: House) -> None:
    generation = await house.send("words 20 every 5ms")
    async with house.client.socket() as socket:
        one = await socket.subscribe(WATCH, id=generation["id"])
        two = await socket.subscribe(WATCH, id=generation["id"], after=None)
        first, second = await one.rest(), await two.rest()
    assert text_of(first) == text_of(second) == first[-1]["message"]["content"]


async def test_unsubscribing_ends_the_reading_and_not_the_generation(house: House) -> None:
    async with house.client.socket() as socket:
        operation = await socket.subscribe(SEND, input={"message": "a", "model": "scripted:words 3;stall"})
        events = await operation.until("TextDelta")
        await house.log.has_readers(1)
        await operation.complete()
        await house.log.has_readers(0)
        status = await house.client.ask(
            "query ($id: ID!) { generation(id: $id) { status } }", id=events[0]["generationId"]
        )
        assert status == {"status": "STREAMING"}
        assert house.scripted.open_streams == 1


async def test_a_lost_connection_ends_the_reading_and_not_the_generation(house: House) -> None:
    async with house.client.socket() as socket:
        operation = await socket.subscribe(SEND, input={"message": "a", "model": "scripted:words 3;stall"})
        await operation.until("TextDelta")
        await house.log.has_readers(1)
        socket.drop()
        await house.log.has_readers(0)
        assert house.scripted.open_streams == 1


async def test_an_unknown_model_is_refused_and_nothing_is_stored(house: House) -> None:
    async with house.client.socket() as socket:
        for name in ("scripted:sing", "dark:moon"):
            operation = await socket.subscribe(SEND, input={"message": "a", "model": name})
            with pytest.raises(Refused) as refused:
                await operation.rest()
            assert refused.value.code == "MODEL_NOT_FOUND"
            assert name.partition(":")[2] in refused.value.message
    assert await house.count("conversations") == await house.count("messages") == 0


@pytest.mark.parametrize(
    ("more", "code", "named"),
    [
        ({"message": " \n"}, "BAD_INPUT", "message"),
        ({"options": {"temperature": 3}}, "BAD_INPUT", "temperature"),
        ({"options": {"maxTokens": 0}}, "BAD_INPUT", "maxTokens"),
        ({"options": {"stop": ["\0"]}}, "BAD_INPUT", "stop"),
        ({"conversationId": "x"}, "BAD_INPUT", "conversationId"),
        ({"parentId": "x"}, "BAD_INPUT", "parentId"),
        ({"parentId": str(uuid4())}, "BAD_INPUT", "conversationId"),
        ({"conversationId": str(uuid4())}, "NOT_FOUND", "conversation"),
        ({"images": []}, "GRAPHQL_VALIDATION_FAILED", "images"),
        ({"options": {"temperature": "hot"}}, "GRAPHQL_VALIDATION_FAILED", "temperature"),
    ],
)
async def test_a_bad_message_is_refused_and_nothing_is_stored(
    house: House, more: Json, code: str, named: str
) -> None:
    async with house.client.socket() as socket:
        operation = await socket.subscribe(SEND, input={"message": "a", "model": "scripted:words 1"} | more)
        with pytest.raises(Refused) as refused:
            await operation.rest()
    assert refused.value.code == code
    assert named in refused.value.message
    assert await house.count("conversations") == 0


async def test_somebody_elses_conversation_is_not_found(house: House) -> None:
    generation = await house.say("words 1")
    conversation_id, id_ = generation["conversation"]["id"], generation["id"]
    house.viewer_id = "somebody else"
    async with house.client.socket() as socket:
        for query, variables in (
            (SEND, {"input": {"message": "a", "conversationId": conversation_id}}),
            (WATCH, {"id": id_}),
        ):
            with pytest.raises(Refused) as refused:
                await (await socket.subscribe(query, **variables)).rest()
            assert refused.value.code == "NOT_FOUND"


async def test_a_parent_of_another_conversation_is_not_found(house: House) -> None:
    one, other = await house.say("words 1"), await house.say("words 1")
    async with house.client.socket() as socket:
        message = {"message": "a", "model": "scripted:words 1", "parentId": other["message"]["id"]}
        operation = await socket.subscribe(
            SEND, input=message | {"conversationId": one["conversation"]["id"]}
        )
        with pytest.raises(Refused) as refused:
            await operation.rest()
    assert refused.value.code == "NOT_FOUND"


async def test_a_message_to_a_head_that_is_being_written_is_a_conflict(house: House) -> None:
    generation = await house.send("stall")
    async with house.client.socket() as socket:
        operation = await socket.subscribe(
            SEND,
            input={
                "message": "b",
                "model": "scripted:words 1",
                "conversationId": generation["conversation"]["id"],
            },
        )
        with pytest.raises(Refused) as refused:
            await operation.rest()
    assert refused.value.code == "CONFLICT"
    assert refused.value.errors[0]["extensions"]["retryable"] is True
    assert await house.count("messages") == 2


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"id": "x"}, "BAD_INPUT"),
        ({"id": str(uuid4())}, "NOT_FOUND"),
        ({"id": str(uuid4()), "after": -1}, "BAD_INPUT"),
        ({"after": 1}, "GRAPHQL_VALIDATION_FAILED"),
    ],
)
async def test_nothing_to_watch(house: House, variables: Json, code: str) -> None:
    async with house.client.socket() as socket:
        with pytest.raises(Refused) as refused:
            await (await socket.subscribe(WATCH, **variables)).rest()
    assert refused.value.code == code


async def test_a_client_that_does_not_read_holds_up_nobody(house: House) -> None:
    generation = await house.send(";".join(["history"] * 20), "x" * 400_000)
    with socket_module.socket() as narrow:
        narrow.setsockopt(socket_module.SOL_SOCKET, socket_module.SO_RCVBUF, 4096)
        narrow.setblocking(False)
        host, _, port = house.client.websocket_url.removeprefix("ws://").partition("/")[0].partition(":")
        await asyncio.get_running_loop().sock_connect(narrow, (host, int(port)))
        async with house.client.socket(sock=narrow, max_queue=1) as socket:
            await socket.subscribe(WATCH, id=generation["id"])
            await house.log.has_readers(1)
            await house.engine.ended(UUID(generation["id"]))
            await house.log.has_readers(1)
            socket.drop()
            await house.log.has_readers(0)


class Forgetful(Database):
    """A database that is away for the first few questions about messages."""

    def __init__(self, database: Database, times: int) -> None:
        super().__init__(database._pool, database._limits)
        self.times = times

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        if "FROM messages m" in sql and self.times:
            self.times -= 1
            raise DatabaseUnavailable("the connection is gone")
        return await super().fetch(sql, *args)


async def test_a_database_that_is_away_at_an_events_details_is_waited_for(
    database: Database, bell: Bell
) -> None:
    """C8: the end of a reply is told as its end, never as an error of the operation."""
    forgetful = Forgetful(database, times=5)
    async with opened(House(forgetful, bell)) as house, house.client.socket() as socket:
        seen = await stream(socket, "words 3")
    assert forgetful.times == 0
    assert seen[-1]["message"]["content"] == "w1 w2 w3"
