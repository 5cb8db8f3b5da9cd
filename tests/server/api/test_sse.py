"""Operations answered by event streams."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from starlette.types import Message
from strawberry.types import ExecutionResult

from server.api import schema
from server.api.accept import preferred
from server.api.cursor import Cursor
from server.api.endpoint import Endpoint
from server.api.sse import EventStream
from tests.event_stream import COMPLETE, Event, all_events, event_stream, events
from tests.graphql_client import GraphQLClient, Json
from tests.server.api.conftest import House
from tests.server.api.test_subscriptions import SEND, WATCH, covered, text_of
from tests.server.live import live

SCRIPT = "words 3 every 10ms;wait 1ms;words 2 every 10ms"


def message(script: str, text: str = "hello", **more: Any) -> Json:
    return {"message": text, "model": f"scripted:{script}", **more}


async def first_events(response: httpx.Response, until: str) -> list[Event]:
    """The events up to the first of this type; the answer stays open."""
    seen = []
    async with aclosing(events(response)) as coming:
        async for event in coming:
            seen.append(event)
            if event.value["__typename"] == until:
                return seen
    raise AssertionError(f"no {until} in {seen}")


def error_of(event: Event) -> Json:
    """The only error of a result that has no data and no id."""
    assert (event.name, event.id, event.payload["data"]) == ("next", None, None)
    (error,) = event.payload["errors"]
    assert isinstance(error, dict)
    return error


async def test_a_message_is_answered_event_by_event(house: House) -> None:
    async with event_stream(house.client, SEND, input=message(SCRIPT)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        seen = [event async for event in events(response)]
    assert seen.pop() == COMPLETE
    values = [event.value for event in seen]
    assert values[0]["__typename"] == "GenerationStarted"
    assert values[-1]["__typename"] == "GenerationCompleted"
    assert covered(values) == list(range(1, values[-1]["seq"] + 1))
    assert text_of(values) == values[-1]["message"]["content"] == "w1 w2 w3 w4 w5"
    assert [event.id for event in seen] == [f"{value['generationId']}:{value['seq']}" for value in values]
    assert {event.name for event in seen} == {"next"}


async def test_an_event_is_seen_before_the_next_one_is_there(house: House) -> None:
    async with event_stream(house.client, SEND, input=message("words 3;stall")) as response:
        await first_events(response, "TextDelta")
        assert house.scripted.open_streams == 1


async def test_events_have_ids_whatever_is_asked_of_them(house: House) -> None:
    generation = await house.say("text Hello")
    query = "subscription ($id: ID!) { it: generation(id: $id) { ... on TextDelta { text } } }"
    seen = await all_events(house.client, query, id=generation["id"])
    assert [event.value for event in seen] == [{}, {"text": "Hello"}, {}]
    assert [event.id for event in seen] == [f"{generation['id']}:{seq}" for seq in (1, 2, 3)]


async def test_queries_and_mutations_have_one_result(house: House) -> None:
    (answer,) = await all_events(house.client, "{ __typename }")
    assert answer == Event("next", '{"data":{"__typename":"Query"}}')
    (answer,) = await all_events(
        house.client,
        "mutation ($input: MessageInput!) { addMessage(input: $input) { content } }",
        last_event_id="of no meaning here",
        input=message("text two\nlines"),
    )
    assert (answer.value, answer.id) == ({"content": "two\nlines"}, None)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("{", "GRAPHQL_PARSE_FAILED"),
        ("subscription { sing }", "GRAPHQL_VALIDATION_FAILED"),
        ("fragment A on Query { __typename }", "GRAPHQL_VALIDATION_FAILED"),
        ("", "GRAPHQL_VALIDATION_FAILED"),
        ("subscription { generation(id: 1) { seq } }", "BAD_INPUT"),
        (f'subscription {{ generation(id: "{uuid4()}") {{ seq }} }}', "NOT_FOUND"),
        ('subscription { streamMessage(input: {message: "a", model: "no"}) { seq } }', "MODEL_NOT_FOUND"),
    ],
)
async def test_what_is_refused_is_told_by_an_event(house: House, query: str, code: str) -> None:
    """The reference client takes an HTTP status as a lost connection, and tries again."""
    (event,) = await all_events(house.client, query)
    assert error_of(event)["extensions"]["code"] == code
    assert await house.count("messages") == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"null", 400),
        (b"[]", 400),
        (b'{"query": 1}', 400),
        (b'{"query": "{ __typename }", "variables": []}', 400),
        (b" " * (8 * 1024 * 1024 + 1), 413),
    ],
)
async def test_what_is_no_request_has_a_status(house: House, body: bytes, status: int) -> None:
    headers = {"accept": "text/event-stream", "content-type": "application/json"}
    response = await house.client.http.post(house.client.url, content=body, headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert response.json()["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"


async def test_an_operation_name_that_is_none_is_an_error(house: House) -> None:
    names: tuple[object, ...] = ("B", {}, 1)
    for name in names:
        response = await house.client.http.post(
            house.client.url,
            json={"query": "{ __typename }", "operationName": name},
            headers={"accept": "text/event-stream"},
        )
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
        assert "GRAPHQL_VALIDATION_FAILED" in response.text


JSON, STREAM = "application/json", "text/event-stream"


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("", JSON),
        ("*/*", JSON),
        (JSON, JSON),
        ("application/*", JSON),
        (f"{JSON};charset=utf-8", JSON),
        (STREAM, STREAM),
        ("Text/Event-Stream", STREAM),
        ("text/*", STREAM),
        (f"{STREAM}, {JSON}", JSON),
        (f"{STREAM}, */*", JSON),
        (f"{STREAM}, */*;q=0.1", STREAM),
        (f"{STREAM};q=0.9, {JSON}", JSON),
        (f"{JSON};q=0.5 , {STREAM} ; q=0.8", STREAM),
        (f"{JSON};q=0.555, {STREAM};q=0.554", JSON),
        (f"{JSON};q=0, */*", STREAM),
        (f"{STREAM};q=0, */*", JSON),
        (f"application/graphql-response+json, {JSON};q=0.9", JSON),
        ("application/graphql-response+json, application/json, text/event-stream, multipart/mixed", JSON),
        ("text/event-stream, multipart/mixed", STREAM),
        (f"{JSON};q=0", None),
        ("text/html", None),
        ("nonsense", None),
    ],
)
def test_the_client_has_what_it_prefers(accept: str, answer: str | None) -> None:
    assert preferred(accept, (JSON, STREAM)) == answer


async def test_what_fits_no_client_is_not_sent(house: House) -> None:
    for accept, status, content_type in (
        (f"{STREAM};q=0.4, {JSON};q=0.5", 200, JSON),
        (f"{STREAM};q=0.5, {JSON};q=0.4", 200, STREAM),
        ("text/html", 406, JSON),
        (f"{STREAM};q=0", 406, JSON),
    ):
        response = await house.client.http.post(
            house.client.url, json={"query": "{ __typename }"}, headers={"accept": accept}
        )
        assert (response.status_code, response.headers["content-type"]) == (status, content_type)
        assert (f"Accept names neither {JSON} nor {STREAM}" in response.text) == (status == 406)


async def test_nothing_is_run_over_get(house: House) -> None:
    query = 'subscription { streamMessage(input: {message: "a", model: "scripted:words 1"}) { seq } }'
    response = await house.client.http.get(
        house.client.url, params={"query": query}, headers={"accept": STREAM}
    )
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert "POST" in response.json()["errors"][0]["message"]
    assert await house.count("messages") == 0


async def test_a_client_that_comes_back_goes_on_after_each_event(house: House) -> None:
    """The same request again, and no second message."""
    sent = message(SCRIPT)
    whole = await all_events(house.client, SEND, input=sent)
    for event in whole:
        rest = await all_events(house.client, SEND, last_event_id=event.id, input=sent)
        seen = [one.value for one in rest]
        last = whole[-1].value
        assert covered(seen) == list(range(event.value["seq"] + 1, last["seq"] + 1))
        assert seen[-1:] == ([last] if event != whole[-1] else [])
    assert await house.count("messages") == 2


async def test_a_client_that_comes_back_while_the_reply_is_written_misses_nothing(house: House) -> None:
    sent = message("words 40 every 5ms")
    async with event_stream(house.client, SEND, input=sent) as response:
        seen = await first_events(response, "TextDelta")
    await house.log.has_readers(0)
    seen += await all_events(house.client, SEND, last_event_id=seen[-1].id, input=sent)
    values = [event.value for event in seen]
    assert covered(values) == list(range(1, values[-1]["seq"] + 1))
    assert text_of(values) == values[-1]["message"]["content"]
    assert await house.count("messages") == 2


async def test_the_last_event_comes_before_after(house: House) -> None:
    generation = await house.say(SCRIPT)
    id_ = generation["id"]
    rest = await all_events(house.client, WATCH, last_event_id=f"{id_}:2", id=id_, after=0)
    assert rest[0].value.get("fromSeq", rest[0].value["seq"]) == 3
    assert [e.value for e in await all_events(house.client, WATCH, id=id_, after=2)] == [
        e.value for e in rest
    ]


@pytest.mark.parametrize(
    "last_event_id",
    [
        "1",
        "x:1",
        ":1",
        f"{uuid4()}",
        f"{uuid4()}:",
        f"{uuid4()}:-1",
        f"{uuid4()}:1.0",
        f"{uuid4()}:1:1",
        f"{{{uuid4()}}}:1",
        f"{uuid4()}:{10**20}",
        "\N{SUPERSCRIPT TWO}",
    ],
)
async def test_an_id_of_no_event_is_refused_and_nothing_is_stored(house: House, last_event_id: str) -> None:
    headers = [("accept", STREAM), ("last-event-id", last_event_id)]
    body = {"query": SEND, "variables": {"input": message("words 1")}}
    response = await house.client.http.post(
        house.client.url, json=body, headers=httpx.Headers(headers, encoding="latin-1")
    )
    assert response.text.endswith("\n\nevent: complete\ndata:\n\n")
    assert "Last-Event-ID is " in response.text
    assert '"code":"BAD_INPUT"' in response.text
    assert await house.count("messages") == 0


async def test_another_generations_id_is_refused_and_nothing_is_stored(house: House) -> None:
    mine, other = await house.say("words 1"), await house.say("words 1", "something else")
    stored = await house.count("messages")
    sending = {"input": message("words 1")}

    async def told(query: str, last_event_id: str, **variables: Any) -> Json:
        (event,) = await all_events(house.client, query, last_event_id=last_event_id, **variables)
        return error_of(event)

    unknown = await told(SEND, f"{uuid4()}:1", **sending)
    assert unknown["extensions"]["code"] == "NOT_FOUND"
    answer_to_another = await told(SEND, f"{other['id']}:1", **sending)
    assert answer_to_another["extensions"]["code"] == "BAD_INPUT"
    assert "another message" in answer_to_another["message"]
    of_another = await told(WATCH, f"{other['id']}:1", id=mine["id"])
    assert of_another["extensions"]["code"] == "BAD_INPUT"
    malformed = await told(WATCH, "1", id=mine["id"])
    assert "Last-Event-ID is '1'" in malformed["message"]
    house.viewer_id = "somebody else"
    foreign = await told(SEND, f"{mine['id']}:1", **sending)
    assert foreign["extensions"]["code"] == "NOT_FOUND"
    assert await house.count("messages") == stored


async def test_a_silent_stream_is_kept_alive(house: House) -> None:
    generation = await house.send("stall")
    endpoint = Endpoint(schema, lambda _: house.context(), asyncio.Event(), keep_alive_seconds=0.01)
    async with live(endpoint) as port, httpx.AsyncClient() as http:
        client = GraphQLClient(f"http://127.0.0.1:{port}/graphql")
        client.http = http
        async with event_stream(client, WATCH, id=generation["id"]) as response:
            seen = []
            async with aclosing(events(response)) as coming:
                async for event in coming:
                    seen.append(event.name)
                    if seen.count("comment") == 3:
                        await house.engine.stop(house.viewer_id, UUID(generation["id"]))
                        break
                seen += [event.name async for event in coming]
    assert [name for name in seen if name != "comment"] == ["next", "next", "complete"]


async def test_a_lost_connection_ends_the_reading_and_not_the_generation(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with event_stream(house.client, SEND, input=message("words 3;stall")) as response:
        await first_events(response, "TextDelta")
        await house.log.has_readers(1)
    await house.log.has_readers(0)
    assert house.scripted.open_streams == 1
    assert caplog.records == []


async def test_a_failure_inside_is_masked_and_has_no_id(house: House) -> None:
    generation = await house.say("words 1")
    await house.database.execute("ALTER TABLE generation_events RENAME TO elsewhere")
    (event,) = await all_events(house.client, WATCH, id=generation["id"])
    error = error_of(event)
    assert error["extensions"]["code"] == "INTERNAL"
    assert "generation_events" not in error["message"]


async def test_results_are_closed_though_the_connection_takes_no_more() -> None:
    """By a server that leaves ``send`` waiting when the client is gone; uvicorn's returns."""
    stuck, closed = asyncio.Event(), asyncio.Event()

    async def results() -> AsyncGenerator[ExecutionResult]:
        try:
            while True:
                yield ExecutionResult(data={}, errors=None)
        finally:
            closed.set()

    async def receive() -> Message:
        await stuck.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("more_body"):
            stuck.set()
            await asyncio.Event().wait()

    endless = results()
    async with asyncio.timeout(5):
        await EventStream(endless, Cursor(None), keep_alive_seconds=60, closing=asyncio.Event())(
            {}, receive, send
        )
    assert closed.is_set()
