"""What is refused before anything runs, by POST, GET and WebSocket, and what errors may say."""

import asyncio
import json
import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from graphql import get_introspection_query
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from db.database import Database, StatementFailed
from tests.graphql_client import PROTOCOL, Failed, Json, Operation, Refused, Socket
from tests.server.api.conftest import House

WATCH = "subscription ($id: ID!) { generation(id: $id) { __typename } }"


async def both_ways(house: House, query: str) -> list[Json]:
    """The errors that a document gets by POST and by WebSocket, which are the same."""
    answer = await house.client.post(query)
    assert answer.get("data") is None
    async with house.client.socket() as socket:
        with pytest.raises(Refused) as refused:
            await (await socket.subscribe(query)).rest()
        alive = await socket.subscribe("{ __typename }")
        assert await alive.rest() == ["Query"]
    assert refused.value.errors == answer["errors"]
    errors: list[Json] = answer["errors"]
    return errors


def bomb(levels: int) -> str:
    """A short document that selects one field 2 ** levels times."""
    fragments = [f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(levels)]
    return "{ ...F0 }" + " ".join(fragments) + f"fragment F{levels} on Query {{ a: __typename }}"


DOCUMENTS = [
    ("{", "GRAPHQL_PARSE_FAILED", "Syntax Error"),
    ("{ a " * 900, "GRAPHQL_PARSE_FAILED", "nested too deeply"),
    ("{" + "__typename " * 1_000 + "}", "GRAPHQL_PARSE_FAILED", "1000 tokens"),
    ("{ a #" + "x" * 20_000, "GRAPHQL_PARSE_FAILED", "Syntax Error"),
    ("{ nonsense }", "GRAPHQL_VALIDATION_FAILED", "nonsense"),
    ("{ nonsense #" + "x" * 20_000 + "\n}", "GRAPHQL_VALIDATION_FAILED", "nonsense"),
    ("{ ...Nowhere }", "GRAPHQL_VALIDATION_FAILED", "Nowhere"),
    ("{ ...A } fragment A on Query { ...A }", "GRAPHQL_VALIDATION_FAILED", "'A'"),
    ("{ model(name: 1) { name } }", "GRAPHQL_VALIDATION_FAILED", "String"),
    ("{" + " ".join(f"a{n}: __typename" for n in range(31)) + "}", "GRAPHQL_VALIDATION_FAILED", "31 al"),
    (bomb(80), "GRAPHQL_VALIDATION_FAILED", "aliases"),
    (
        '{ __type(name: "Query") ' + "{ ofType " * 20 + "{ name }" + "}" * 21,
        "GRAPHQL_VALIDATION_FAILED",
        "22 levels deep",
    ),
]


async def test_a_document_that_cannot_run_is_refused(house: House, subtests: pytest.Subtests) -> None:
    for query, code, named in DOCUMENTS:
        with subtests.test(query=query[:80]):
            for _ in range(2):  # the second time from the cache
                async with asyncio.timeout(5):
                    errors = await both_ways(house, query)
                assert {error["extensions"]["code"] for error in errors} == {code}
                assert any(named in error["message"] for error in errors)


async def test_introspection_as_graphiql_asks_for_it_passes(house: House) -> None:
    query = get_introspection_query(
        specified_by_url=True,
        directive_is_repeatable=True,
        schema_description=True,
        input_value_deprecation=True,
    )
    assert (await house.client.ask(query))["queryType"]["name"] == "Query"


BODIES = [
    (b"", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b"\xff", 400, "JSON"),
    (b"[" * 100_000, 400, "JSON"),
    (b"null", 400, "JSON object"),
    (b'"{ __typename }"', 400, "JSON object"),
    (b"[]", 400, "Batching"),
    (b"{}", 400, "query"),
    (b'{"query": 1}', 400, "query"),
    (b'{"query": ""}', 400, "query"),
    (b'{"query": "{ __typename }", "variables": []}', 400, "variables"),
    (b'{"query": "{ __typename }", "extensions": 1}', 400, "extensions"),
    (b'{"query": "fragment A on Query { __typename }"}', 400, "operation"),
    (b'{"query": "{ __typename }", "operationName": "B"}', 400, "operation"),
    (b'{"query": "{ __typename }", "operationName": {}}', 400, "operation"),
    (b'{"query": "subscription { generation(id: 1) { seq } }"}', 400, "subscriptions"),
    (b'{"query": "' + b"#" * 100_001 + b'"}', 413, "variables"),
    (b" " * (8 * 1024 * 1024 + 1), 413, "bytes"),
]


async def test_a_request_that_is_none_is_refused(house: House, subtests: pytest.Subtests) -> None:
    for body, status, named in BODIES:
        with subtests.test(body=body[:80]):
            response = await house.client.http.post(
                house.client.url, content=body, headers={"content-type": "application/json"}
            )
            assert response.status_code == status
            (error,) = response.json()["errors"]
            assert named.lower() in error["message"].lower()
            assert error["extensions"] == {"code": "GRAPHQL_VALIDATION_FAILED", "retryable": False}


async def test_only_json_by_post_is_taken(house: House) -> None:
    http, url = house.client.http, house.client.url
    for response, status in (
        (await http.get(url, params={"query": "{ __typename }"}), 405),
        (await http.get(url, params={"query": "subscription { generation(id: 1) { seq } }"}), 405),
        (await http.get(url), 405),
        (await http.put(url, json={"query": "{ __typename }"}), 405),
        (await http.post(url, content="{ __typename }", headers={"content-type": "text/plain"}), 400),
        (await http.post(url, data={"operations": '{"query": "{ __typename }"}'}), 400),
        (await http.post(url, data={"operations": "{}"}, files={"a": b""}), 400),
    ):
        assert response.status_code == status
        assert response.json()["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"


async def test_a_subscription_is_refused_by_post(house: House) -> None:
    """Strawberry would answer without having called its resolver."""
    for accept in ("application/json", "application/json, text/event-stream, multipart/mixed", "*/*"):
        response = await house.client.http.post(
            house.client.url,
            json={"query": "subscription { generation(id: 1) { seq } }"},
            headers={"accept": accept},
        )
        assert response.status_code == 400
        assert "subscriptions" in response.json()["errors"][0]["message"]


async def test_a_socket_answers_pings_and_runs_everything(house: House) -> None:
    async with house.client.socket() as socket:
        await socket.send({"type": "ping", "payload": {"a": 1}})
        assert await socket.receive() == {"type": "pong"}
        await socket.send({"type": "pong"})
        query = await socket.subscribe("{ __typename }")
        mutation = await socket.subscribe(
            "mutation ($input: MessageInput!) { addMessage(input: $input) { content } }",
            input={"message": "a", "model": "scripted:words 2"},
        )
        assert await mutation.rest() == [{"content": "w1 w2"}]
        assert await query.rest() == ["Query"]
        failing = await socket.subscribe("mutation { stopGeneration(id: 1) { id } }")
        with pytest.raises(Failed) as failed:
            await failing.rest()
        assert failed.value.code == "BAD_INPUT"


@pytest.mark.parametrize("protocols", [[], ["graphql-ws"], ["graphql-ws", "mqtt"]])
async def test_other_protocols_are_refused(house: House, protocols: list[str]) -> None:
    subprotocols = [Subprotocol(protocol) for protocol in protocols] or None
    async with connect(house.client.websocket_url, subprotocols=subprotocols) as connection:
        assert connection.subprotocol is None
        async with asyncio.timeout(5):
            await connection.wait_closed()
        assert connection.close_code == 4406


INIT: Json = {"type": "connection_init"}
ASK: Json = {"id": "1", "type": "subscribe", "payload": {"query": WATCH, "variables": {"id": "?"}}}


BREACHES: list[tuple[list[Any], int]] = [
    ([ASK], 4401),
    ([INIT, INIT], 4429),
    ([{**INIT, "payload": 1}], 4400),
    (["{"], 4400),
    (["[" * 100_000], 4400),
    ([b"{}"], 4400),
    ([INIT, 1], 4400),
    ([INIT, None], 4400),
    ([INIT, []], 4400),
    ([INIT, {}], 4400),
    ([INIT, {"type": "start"}], 4400),
    ([INIT, {"type": "x" * 1_000}], 4400),
    ([INIT, {"type": ["subscribe"]}], 4400),
    ([INIT, {**ASK, "id": 1}], 4400),
    ([INIT, {**ASK, "id": "x" * 1_000}], 4400),
    ([INIT, {**ASK, "payload": None}], 4400),
    ([INIT, {**ASK, "payload": {"query": 1}}], 4400),
    ([INIT, {**ASK, "payload": {"query": "{ __typename }", "variables": []}}], 4400),
    ([INIT, {"type": "complete"}], 4400),
]


async def test_a_breach_of_the_protocol_closes_the_connection(
    house: House, subtests: pytest.Subtests, caplog: pytest.LogCaptureFixture
) -> None:
    for frames, code in BREACHES:
        with subtests.test(frames=str(frames)[:80]):
            assert await close_code(house, frames) == code
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def close_code(house: House, frames: list[Any]) -> int | None:
    """What the server closes a connection with after these frames."""
    async with connect(house.client.websocket_url, subprotocols=[Subprotocol(PROTOCOL)]) as connection:
        for frame in frames:
            await connection.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))
        async with asyncio.timeout(5):
            await connection.wait_closed()
        return connection.close_code


async def test_a_connection_that_does_not_begin_is_closed(house: House) -> None:
    house.endpoint.connection_init_wait_timeout = timedelta(milliseconds=10)
    assert await close_code(house, []) == 4408


async def stalled(house: House, socket: Socket) -> Json:
    """Watch a generation that never ends; the subscription that does it."""
    generation = await house.send("stall")
    payload = {"query": WATCH, "variables": {"id": generation["id"]}}
    return {"type": "subscribe", "payload": payload}


async def test_an_id_in_use_closes_the_connection(house: House) -> None:
    async with house.client.socket() as socket:
        subscription = await stalled(house, socket) | {"id": "x" * 64}
        await socket.send(subscription)
        await socket.send(subscription)
        async with asyncio.timeout(5):
            await socket.connection.wait_closed()
        assert socket.connection.close_code == 4409
    await house.log.has_readers(0)


async def test_a_connection_runs_100_operations_at_once(house: House) -> None:
    async with house.client.socket() as socket:
        subscription = await stalled(house, socket)
        for number in range(101):
            await socket.send(subscription | {"id": f"many-{number}"})
        with pytest.raises(Refused) as refused:
            await anext(Operation(socket, "many-100"))
        assert refused.value.code == "OVERLOADED"
        await house.log.has_readers(100)
        await socket.send({"id": "many-0", "type": "complete"})
        await house.log.has_readers(99)
        await socket.send(subscription | {"id": "again"})
        await house.log.has_readers(100)
        socket.drop()
    await house.log.has_readers(0)


@pytest.fixture
async def broken(house: House) -> str:
    """A generation whose log the server cannot read, since a table is missing."""
    generation = await house.say("words 1")
    await house.database.execute("ALTER TABLE generation_events RENAME TO elsewhere")
    await house.database.execute("ALTER TABLE conversations RENAME TO nowhere")
    id_: str = generation["id"]
    return id_


async def test_what_nobody_foresaw_is_masked_and_logged(
    house: House, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No internals at the client; the log has them under the id that the client is told."""
    queries = (
        "{ conversations { edges { cursor } } }",
        'mutation { addMessage(input: {message: "a", model: "scripted:words 1"}) { id } }',
    )
    for query in queries:
        caplog.clear()
        answer = await house.client.post(query)
        (error,) = answer["errors"]
        assert error["extensions"] == {"code": "INTERNAL", "retryable": False}
        assert "conversations" not in error["message"]
        (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert str(record.args[0] if isinstance(record.args, tuple) else "") in error["message"]
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], StatementFailed)


async def test_a_subscription_that_fails_inside_ends_with_a_masked_error(
    house: House, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.client.socket() as socket:
        operation = await socket.subscribe(WATCH, id=broken)
        payload = await anext(operation)
        assert payload["data"] is None
        assert payload["errors"][0]["extensions"]["code"] == "INTERNAL"
        assert "generation_events" not in json.dumps(payload)
        assert [rest async for rest in operation] == []
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_a_database_that_is_away_is_named(house: House, database_url: str) -> None:
    async with Database.open(database_url) as closed:
        pass
    house.database = closed
    for query in ("{ conversations { edges { cursor } } }", f'{{ node(id: "{UUID(int=0)}") {{ id }} }}'):
        answer = await house.client.post(query)
        assert answer["errors"][0]["extensions"] == {"code": "DATABASE_UNAVAILABLE", "retryable": True}


async def test_a_client_that_vanishes_is_not_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    generation = await house.send("words 10000 every 1ms")
    async with house.client.socket() as socket:
        await (await socket.subscribe(WATCH, id=generation["id"])).until("TextDelta")
        socket.drop()
        await house.log.has_readers(0)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_what_a_client_did_wrong_is_not_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    await house.client.post("{ node(id: 1) { id } }")
    await house.client.post("{")
    async with house.client.socket() as socket:
        for id_ in ("?", str(UUID(int=0))):
            with pytest.raises(Refused):
                await (await socket.subscribe(WATCH, id=id_)).rest()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_error_says_where_it_happened(house: House) -> None:
    answer = await house.client.post("{\n  one: __typename\n  two: node(id: 1) { id }\n}")
    (error,) = answer["errors"]
    assert answer["data"] == {"one": "Query", "two": None}
    assert error["path"] == ["two"]
    assert error["locations"] == [{"line": 3, "column": 3}]


async def test_variables_that_do_not_fit_are_an_error(house: House) -> None:
    query = (
        "query ($id: ID!, $first: Int) { node(id: $id) { id } conversations(first: $first) { __typename } }"
    )
    for variables, named in (
        ({}, "$id"),
        ({"id": None}, "$id"),
        ({"id": {}}, "$id"),
        ({"id": "a", "first": 2**31}, "$first"),
        ({"id": "a", "first": "many"}, "$first"),
    ):
        answer = await house.client.post(query, **variables)
        assert answer["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"
        assert named in answer["errors"][0]["message"]


async def test_a_long_document_is_refused_before_it_is_read(house: House) -> None:
    """Reading one would hold up everybody; what is long belongs into the variables."""
    query = "{ __typename }" + "#" * 100_000
    async with house.client.socket() as socket:
        with pytest.raises(Refused, match="variables") as refused:
            await (await socket.subscribe(query)).rest()
        assert refused.value.code == "GRAPHQL_PARSE_FAILED"
        assert await (await socket.subscribe("{ __typename }")).rest() == ["Query"]
