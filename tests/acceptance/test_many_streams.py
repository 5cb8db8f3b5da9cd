"""Fifty replies at once over both local providers, each what its prompt gives alone."""

import asyncio
import os

import pytest

from tests.acceptance.parley import DEMO, Parley
from tests.graphql_client import GraphQLClient

SEND = """
subscription ($message: String!, $model: String!) {
  streamMessage(input: {message: $message, model: $model, options: {temperature: 0, maxTokens: 12}}) {
    __typename
    ... on TextDelta { text }
    ... on GenerationCompleted { usage { completionTokens } }
    ... on GenerationFailed { error { code message } }
  }
}
"""
PLACES = ("sea", "desert", "forest", "city", "sky")
STREAMS = 50


async def reply(client: GraphQLClient, model: str, message: str) -> str:
    async with client.socket() as socket:
        events = await (await socket.subscribe(SEND, message=message, model=model)).rest()
    assert events[-1]["__typename"] == "GenerationCompleted", events[-1]
    return "".join(event["text"] for event in events if event["__typename"] == "TextDelta")


@pytest.mark.skipif("OLLAMA_HOST" not in os.environ, reason="needs a real Ollama: set OLLAMA_HOST")
async def test_each_of_fifty_replies_is_what_its_prompt_gives_alone(parley: Parley) -> None:
    client = GraphQLClient(f"{parley.url}/graphql", patience_seconds=300)
    asked = [
        (model, f"Name {number + 2} animals that live in the {place}.")
        for model in (f"hf:{DEMO}", "ollama:smollm2:135m")
        for number, place in enumerate(PLACES)
    ]
    alone = {(model, message): await reply(client, model, message) for model, message in asked}
    assert len(set(alone.values())) > len(PLACES), "the prompts' replies tell nothing apart"
    at_once = [asked[number % len(asked)] for number in range(STREAMS)]
    replies = await asyncio.gather(*(reply(client, model, message) for model, message in at_once))
    for question, answer in zip(at_once, replies, strict=True):
        assert answer == alone[question]
