"""Public clients of event streams against a real server: graphql-sse, and an EventSource that comes back."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path

from tests.acceptance.parley import DEMO, Message, Parley, serving
from tests.providers.proxy import FaultProxy

SEND = """
subscription ($message: String!, $model: String!, $maxTokens: Int) {
  streamMessage(input: {message: $message, model: $model, options: {maxTokens: $maxTokens}}) {
    __typename seq
    ... on TextDelta { text fromSeq }
    ... on GenerationCompleted { message { content } }
    ... on GenerationFailed { error { code retryable } message { status content } }
  }
}
"""


def text_of(messages: list[Message]) -> str:
    return "".join(m.event["text"] for m in messages if m.event["__typename"] == "TextDelta")


def assert_gapless(messages: list[Message]) -> None:
    reached = 0
    for message in messages:
        assert message.event.get("fromSeq", message.event["seq"]) == reached + 1
        reached = message.event["seq"]


async def test_graphql_sse_sees_a_real_model_write(parley: Parley) -> None:
    question = "Tell me a story about a fox."
    answers = parley.stream("stream.mjs", SEND, message=question, model=f"hf:{DEMO}", maxTokens=40)
    *seen, last = [answer async for answer in answers]
    assert last.content == {"complete": True}
    assert_gapless(seen)
    assert len(seen) > 10
    assert text_of(seen) == seen[-1].event["message"]["content"]


async def test_graphql_sse_is_told_what_is_wrong(parley: Parley) -> None:
    answers = parley.stream("stream.mjs", SEND, message="Hi", model="hf:nothing")
    refused, last = [answer async for answer in answers]
    assert refused.content["next"]["errors"][0]["extensions"]["code"] == "MODEL_NOT_FOUND"
    assert last.content == {"complete": True}


async def test_an_event_source_comes_back_and_misses_nothing(parley: Parley) -> None:
    """It is the same request twice; the second one goes on where the connection was lost."""
    question = "come back"
    async with FaultProxy("127.0.0.1", int(parley.url.rpartition(":")[2])).running() as proxy:
        through = Parley(parley.process, proxy.url, parley.data_dir, parley.log)
        seen = []
        answers = through.stream(
            "event-source.mjs", SEND, message=question, model="scripted:words 200 every 20ms"
        )
        async with aclosing(answers):
            async for answer in answers:
                seen.append(answer)
                if len(seen) == 20:
                    proxy.cut()
        assert proxy.connections > 1  # connections, not requests: Node may open one more to have it ready
    assert seen.pop().content == {"complete": True}
    assert [m.content for m in seen if "lost" in m.content] == [{"lost": True}]
    events = [message for message in seen if "next" in message.content]
    assert_gapless(events)
    assert text_of(events) == events[-1].event["message"]["content"]
    async with parley.database() as database:
        assert await database.fetchval("SELECT count(*) FROM messages WHERE content = $1", question) == 1


async def test_streams_end_with_their_replies_when_the_server_stops(tmp_path: Path) -> None:
    async with serving(tmp_path) as parley:
        seen = []
        model = "scripted:words 100000 every 20ms"
        async with aclosing(parley.stream("stream.mjs", SEND, message="go on", model=model)) as answers:
            async for answer in answers:
                seen.append(answer)
                if len(seen) == 5:
                    parley.process.terminate()
        assert seen.pop().content == {"complete": True}
        failed = seen[-1].event
        assert failed["error"] == {"code": "INTERRUPTED", "retryable": True}
        assert failed["message"] == {"status": "INTERRUPTED", "content": text_of(seen)}
        assert await parley.process.wait() == 0
        assert "Traceback" not in await parley.logged()


async def test_a_client_that_never_reads_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as parley:
        said = {"message": "x" * 100_000, "model": "scripted:" + ";".join(["history"] * 100)}
        content = json.dumps({"query": SEND, "variables": said})
        port = int(parley.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        head = (
            "POST /graphql HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content.encode())
        assert await reader.readexactly(15) == b"HTTP/1.1 200 OK"
        assert await parley.stop() == 0
        assert "Traceback" not in await parley.logged()
        writer.transport.abort()
