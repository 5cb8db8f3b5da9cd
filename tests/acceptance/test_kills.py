"""kill -9 in mid-answer, of each process there is.

| killed              | the client gets                    | what is stored         | how it comes back     |
| ------------------- | ---------------------------------- | ---------------------- | --------------------- |
| the model's process | its text, then GenerationFailed    | that text, FAILED, an  | the next message      |
|                     | STREAM_BROKEN, retryable; complete | estimated usage row    | loads the model again |
| Postgres, all of it | a pause, the rest of the reply,    | everything, COMPLETED  | started again by the  |
|                     | GenerationCompleted; complete      |                        | server that misses it |
| one backend of it   | the same                           | the same               | by Postgres itself    |
| the server          | a closed socket; from the next one | what was shown, and at | joins the Postgres    |
|                     | what follows its last number, then | most a commit more;    | that still runs, and  |
|                     | GenerationFailed INTERRUPTED;      | INTERRUPTED after one  | closes the reply as   |
|                     | complete                           | lease                  | interrupted           |

Nothing that was shown is missing from what is stored, in any row.
"""

import asyncio
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from db.database import Database
from tests.acceptance.parley import DEMO, Parley, serving
from tests.graphql_client import GraphQLClient, Json, Socket

SEND = """
subscription ($message: String!, $model: String!) {
  streamMessage(input: {message: $message, model: $model, options: {temperature: 0}}) { ...Event }
}
"""
WATCH = "subscription ($id: ID!, $after: Int) { generation(id: $id, after: $after) { ...Event } }"
EVENT = """
fragment Event on StreamEvent {
  __typename seq generationId
  ... on TextDelta { text fromSeq }
  ... on GenerationCompleted { message { content status } }
  ... on GenerationFailed {
    error { code retryable } message { content status } usage { completionTokens source }
  }
}
"""
STORY = "Tell me a long story about a fox."


def text_of(events: list[Json]) -> str:
    return "".join(event["text"] for event in events if event["__typename"] == "TextDelta")


def assert_tiles(events: list[Json], after: int = 0) -> None:
    for event in events:
        assert event.get("fromSeq", event["seq"]) == after + 1
        after = event["seq"]


async def seen_writing(socket: Socket, model: str, deltas: int = 5) -> tuple[Any, list[Json]]:
    """A reply that has said something, and goes on."""
    operation = await socket.subscribe(SEND + EVENT, message=STORY, model=model)
    seen: list[Json] = []
    for _ in range(deltas):
        seen += await operation.until("TextDelta")
    return operation, seen


async def stored(database: Database, generation_id: str) -> Json:
    row = await database.fetchrow(
        """
        SELECT g.status, m.content, s.outcome, s.usage_source
        FROM generations g JOIN messages m ON m.id = g.message_id
        LEFT JOIN model_usage_stats s ON s.generation_id = g.id
        WHERE g.id = $1
        """,
        UUID(generation_id),
    )
    assert row is not None
    return dict(row)


def processes(parley: Parley, words: str) -> list[psutil.Process]:
    """Those of this server, or of its data directory, that have these words in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            family = [parent.pid for parent in process.parents()]
            cwd = process.cwd()
        except psutil.Error:
            continue
        ours = parley.process.pid in family or cwd.startswith(str(parley.data_dir))
        if ours and words in line:
            found.append(process)
    return found


def kill(victims: list[psutil.Process]) -> None:
    assert victims
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    psutil.wait_procs(victims, timeout=10)


async def test_the_models_process(parley: Parley) -> None:
    """C3, C8, H4."""
    client = GraphQLClient(f"{parley.url}/graphql")
    async with client.socket() as socket:
        operation, seen = await seen_writing(socket, f"hf:{DEMO}")
        kill(processes(parley, "huggingface.worker"))
        seen += await operation.rest()
        assert_tiles(seen)
        failed = seen[-1]
        assert failed["__typename"] == "GenerationFailed"
        assert failed["error"] == {"code": "STREAM_BROKEN", "retryable": True}
        assert failed["message"] == {"content": text_of(seen), "status": "FAILED"}
        assert failed["usage"]["source"] in ("ESTIMATED", "MIXED")
        async with parley.database() as database:
            row = await stored(database, failed["generationId"])
        assert (row["status"], row["outcome"], row["content"]) == ("failed", "failed", text_of(seen))

        again = await socket.subscribe(SEND + EVENT, message="Say hello.", model=f"hf:{DEMO}")
        assert (await again.rest())[-1]["__typename"] == "GenerationCompleted"


@pytest.mark.parametrize("victim", ["all of it", "one backend"])
async def test_postgres(victim: str, tmp_path: Path) -> None:
    """Nothing is shown that could be lost, and nothing is lost."""
    async with serving(tmp_path) as parley:
        client = GraphQLClient(f"{parley.url}/graphql")
        async with client.socket() as socket:
            operation, seen = await seen_writing(socket, "scripted:words 150 every 20ms")
            postgres = [one for one in processes(parley, "postgres") if one.name() == "postgres"]
            kill(postgres if victim == "all of it" else backends(postgres)[:1])
            seen += await operation.rest()
        assert_tiles(seen)
        whole = " ".join(f"w{number}" for number in range(1, 151))
        assert seen[-1]["__typename"] == "GenerationCompleted"
        assert text_of(seen) == whole
        assert seen[-1]["message"] == {"content": whole, "status": "COMPLETED"}
        assert "Traceback" not in await parley.logged()


def backends(postgres: list[psutil.Process]) -> list[psutil.Process]:
    found = [one for one in postgres if any("parley" in word for word in one.cmdline())]
    assert found
    return found


async def test_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as parley:
        client = GraphQLClient(f"{parley.url}/graphql")
        async with client.socket() as socket:
            await seen_writing(socket, f"hf:{DEMO}")
            operation, seen = await seen_writing(socket, "scripted:words 100000 every 20ms")
            children = processes(parley, "huggingface.worker")
            assert children
            parley.process.kill()
            with suppress(ConnectionClosed):
                async for event in operation.events():
                    seen.append(event)
        gone, _ = await asyncio.to_thread(psutil.wait_procs, children, 10)
        assert gone == children, "a model's process outlived its server"
        assert seen[-1]["__typename"] == "TextDelta"
        generation_id, last = seen[-1]["generationId"], seen[-1]["seq"]

    async with serving(tmp_path) as parley:
        client = GraphQLClient(f"{parley.url}/graphql")
        async with client.socket() as socket:
            rest = await (await socket.subscribe(WATCH + EVENT, id=generation_id, after=last)).rest()
        assert_tiles(rest, last)
        failed = rest[-1]
        assert failed["error"] == {"code": "INTERRUPTED", "retryable": True}
        assert failed["message"] == {"content": text_of(seen) + text_of(rest), "status": "INTERRUPTED"}
        async with parley.database() as database:
            row = await stored(database, generation_id)
        assert (row["status"], row["outcome"]) == ("interrupted", "interrupted")
        assert row["content"].startswith(text_of(seen))
