"""Another provider answers, where no model was named: seen by clients, and configured (P4, C9)."""

from pathlib import Path

import pytest

from tests.acceptance.parley import serving
from tests.graphql_client import GraphQLClient
from tests.providers.replay import answer, replay_server

SEND = """
subscription ($model: String) {
  streamMessage(input: {message: "Hi", model: $model}) {
    __typename generationId
    ... on GenerationStarted { model }
    ... on ModelSwitched { fromModel toModel reason discardText }
    ... on GenerationCompleted { message { model provider status } }
    ... on GenerationFailed { error { code provider model } message { model status } }
  }
}
"""
ATTEMPTS = """
query ($id: ID!) {
  generation(id: $id) {
    model
    attempts {
      number model provider outcome errorCode startedAt firstTokenAt finishedAt usage { completionTokens }
    }
  }
}
"""


@pytest.mark.parametrize("order", ["ollama,scripted", "ollama"])
async def test_who_answers_instead(order: str, tmp_path: Path) -> None:
    async with replay_server() as ollama:
        ollama.answers["/api/version"] = (answer({"version": "0.5.4"}),)
        ollama.answers["/api/tags"] = (answer({"models": [{"name": "llama3.2:1b"}]}),)
        ollama.answers["/api/chat"] = (answer({"error": "llama runner process has terminated"}, status=500),)
        async with (
            serving(
                tmp_path, OLLAMA_HOST=ollama.url, RETRY_ATTEMPTS="0", PARLEY_FALLBACK_ORDER=order
            ) as parley,
            GraphQLClient(f"{parley.url}/graphql").socket() as socket,
        ):
            seen = await (await socket.subscribe(SEND, model=None)).rest()
            asking = await socket.subscribe(ATTEMPTS, id=seen[0]["generationId"])
            (tried,) = await asking.rest()
    assert seen[0]["model"] == "ollama:llama3.2:1b"
    if order == "ollama":
        assert seen[-1]["error"] == {
            "code": "PROVIDER_UNAVAILABLE",
            "provider": "ollama",
            "model": "ollama:llama3.2:1b",
        }
        assert [attempt["outcome"] for attempt in tried["attempts"]] == ["FAILED"]
        return
    (switched,) = [event for event in seen if event["__typename"] == "ModelSwitched"]
    assert switched["fromModel"] == "ollama:llama3.2:1b"
    assert switched["toModel"].startswith("scripted:words")
    assert "llama runner process has terminated" in switched["reason"]
    assert switched["discardText"] is False
    reply = {"model": switched["toModel"], "provider": "scripted", "status": "COMPLETED"}
    assert seen[-1]["message"] == reply
    assert tried["model"] == switched["toModel"]
    failed, answered = tried["attempts"]
    assert (failed["number"], failed["provider"], failed["outcome"]) == (1, "ollama", "FAILED")
    assert (failed["errorCode"], failed["firstTokenAt"]) == ("PROVIDER_UNAVAILABLE", None)
    assert (answered["number"], answered["provider"], answered["outcome"]) == (2, "scripted", "COMPLETED")
    assert answered["usage"]["completionTokens"] == 60
    assert answered["startedAt"] < answered["firstTokenAt"] < answered["finishedAt"]
