"""Failures that pass while a model is asked again (P4, C7); those that stay are in test_faults.

| fault                               | seen as                     | the reply ends with |
|-------------------------------------|-----------------------------|---------------------|
| Ollama's port closed, then open     | RETRYING until it is open   | GenerationCompleted |
| a model fails once                  | RETRYING once               | GenerationCompleted |
| a model fails, and Stop is asked    | RETRYING, also as its       | GenerationStopped,  |
|   for before the next try           |   status                    |   at once           |
"""

import asyncio
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from providers.ollama import host_url
from tests.acceptance.parley import serving
from tests.graphql_client import GraphQLClient, Json, Operation
from tests.providers.proxy import FaultProxy

SEND = """
subscription ($model: String!) {
  streamMessage(input: {message: "Hi", model: $model, options: {temperature: 0, maxTokens: 3}}) {
    __typename generationId
    ... on PhaseChanged { phase detail }
    ... on GenerationCompleted { message { content } usage { completionTokens } }
  }
}
"""
STATUS = "query ($id: ID!) { generation(id: $id) { status } }"
STOP = "mutation ($id: ID!) { stopGeneration(id: $id) { status } }"


def retrying(events: list[Json]) -> list[str]:
    """What was said before each further try."""
    return [event["detail"] for event in events if event.get("phase") == "RETRYING"]


async def until_retrying(operation: Operation) -> list[Json]:
    seen: list[Json] = []
    while not retrying(seen):
        seen += await operation.until("PhaseChanged")
    return seen


@pytest.mark.skipif("OLLAMA_HOST" not in os.environ, reason="needs a real Ollama: set OLLAMA_HOST")
async def test_ollama_answers_by_itself_once_its_port_is_open(tmp_path: Path) -> None:
    target = urlsplit(host_url(os.environ["OLLAMA_HOST"]))
    proxy = FaultProxy(target.hostname or "", target.port or 0)
    async with proxy.running():
        pass  # it has its port now, and the port is closed
    async with (
        serving(tmp_path, OLLAMA_HOST=proxy.url, RETRY_DELAY_MS="500") as parley,
        GraphQLClient(f"{parley.url}/graphql", patience_seconds=120).socket() as socket,
    ):
        operation = await socket.subscribe(SEND, model="ollama:smollm2:135m")
        seen = await until_retrying(operation)
        async with proxy.running():
            seen += await operation.rest()
    assert seen[-1]["__typename"] == "GenerationCompleted"
    assert seen[-1]["message"]["content"]
    assert len(retrying(seen)) in (1, 2)
    assert f"(try 2 of 4): Ollama at {proxy.url} cannot be reached" in retrying(seen)[0]


async def test_a_model_that_fails_once_answers_all_the_same(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, RETRY_DELAY_MS="50", RETRY_ATTEMPTS="1") as parley,
        GraphQLClient(f"{parley.url}/graphql").socket() as socket,
    ):
        seen = await (await socket.subscribe(SEND, model="scripted:flap overloaded;words 3")).rest()
    assert seen[-1]["message"] == {"content": "w1 w2 w3"}
    assert seen[-1]["usage"] == {"completionTokens": 3}
    (detail,) = retrying(seen)
    assert detail.endswith(" s (try 2 of 2): scripted: fails each odd time")


async def test_a_reply_is_stopped_before_its_next_try(tmp_path: Path) -> None:
    async with serving(tmp_path, RETRY_DELAY_MS="30000") as parley:
        client = GraphQLClient(f"{parley.url}/graphql")
        async with client.socket() as socket, client.http:
            operation = await socket.subscribe(SEND, model="scripted:error overloaded")
            generation_id = (await until_retrying(operation))[0]["generationId"]
            assert await client.ask(STATUS, id=generation_id) == {"status": "RETRYING"}
            clock = asyncio.get_running_loop().time
            asked = clock()
            assert await client.ask(STOP, id=generation_id) == {"status": "STOPPED"}
            await operation.until("GenerationStopped")
            assert clock() - asked < 1
