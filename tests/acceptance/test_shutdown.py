"""How a server ends: what its clients see, what is stored, what is left behind."""

import asyncio
import signal
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from tests.acceptance.parley import DEMO, serving
from tests.event_stream import event_stream, events
from tests.graphql_client import GraphQLClient

SLOW = """
subscription {
  streamMessage(input: {message: "go on", model: "scripted:words 100000 every 20ms"}) {
    __typename
    ... on TextDelta { text }
    ... on GenerationFailed { error { code retryable } message { status content } }
  }
}
"""


WATCH = "subscription ($id: ID!) { conversation(id: $id) { __typename } }"
LOAD = """
mutation ($model: String!) {
  addMessage(input: {message: "Hi", model: $model, options: {maxTokens: 1}}) { id }
}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_told_to_stop_it_ends_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    async with serving(tmp_path) as parley:
        await parley.query(LOAD, model=f"hf:{DEMO}")
        family = psutil.Process(parley.process.pid).children(recursive=True)
        assert family, "the model's process at least"
        assert await parley.stop(number) == 0
        assert [child for child in family if child.is_running()] == []
        assert "Traceback" not in await parley.logged()


async def test_replies_that_run_are_closed_as_interrupted_before_their_sockets(tmp_path: Path) -> None:
    async with serving(tmp_path) as parley:
        seen = []
        async with aclosing(parley.subscribe(SLOW)) as messages:
            async for message in messages:
                seen.append(message)
                if len(seen) == 5:
                    parley.process.terminate()
        failed = seen[-2].event
        assert seen[-1].content == {"complete": True}
        assert failed["error"] == {"code": "INTERRUPTED", "retryable": True}
        text = "".join(one.event["text"] for one in seen[:-1] if one.event["__typename"] == "TextDelta")
        assert failed["message"] == {"status": "INTERRUPTED", "content": text}
        assert await parley.process.wait() == 0
        assert "Traceback" not in await parley.logged()
        async with parley.database() as database:
            [row] = await database.fetch("SELECT status, content FROM messages WHERE role = 'assistant'")
        assert (row["status"], row["content"]) == ("interrupted", text)


async def test_an_idle_socket_does_not_hold_it_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as parley:
        port = int(parley.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await parley.stop() == 0
        writer.close()


async def test_an_event_stream_that_has_no_end_does_not_hold_it_up(tmp_path: Path) -> None:
    """It is cut, without the event that says that all has come."""
    async with serving(tmp_path) as parley:
        client = GraphQLClient(f"{parley.url}/graphql")
        conversation = await client.ask('mutation { createConversation(title: "quiet") { id } }')
        async with event_stream(client, WATCH, id=conversation["id"]) as response:
            found = events(response)
            assert (await anext(found)).value["__typename"] == "ConversationChanged"
            assert await parley.stop() == 0
            assert [event async for event in found] == []
        assert "ERROR" not in await parley.logged()


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as parley, aclosing(parley.subscribe(SLOW)) as messages:
        await anext(messages)
        parley.process.send_signal(signal.SIGINT)
        await parley.says("Stopping")
        assert await parley.stop(signal.SIGINT) == -signal.SIGINT
