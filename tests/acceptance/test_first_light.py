"""A client opens a WebSocket, a real model answers token by token, and Postgres has the conversation then.

S1 S2 S3 C1 C2 D1, with real processes from the public npm client down to the weights.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from tests.acceptance.parley import DEMO, MODELS_PATH, Message, Parley

needs_ollama = pytest.mark.skipif(
    "OLLAMA_HOST" not in os.environ, reason="needs a real Ollama with smollm2:135m: set OLLAMA_HOST"
)

ASK = """
subscription Ask($message: String!, $model: String!, $maxTokens: Int) {
  streamMessage(input: {message: $message, model: $model, options: {temperature: 0, maxTokens: $maxTokens}}) {
    __typename seq generationId
    ... on GenerationStarted { conversation { id } }
    ... on TextDelta { text fromSeq }
    ... on GenerationCompleted {
      finishReason
      message { id content model provider status }
      usage { promptTokens completionTokens totalTokens source firstTokenMs durationMs }
    }
  }
}
"""

CAPITAL = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class Reply:
    messages: Sequence[Message]

    @property
    def events(self) -> list[Mapping[str, Any]]:
        return [message.event for message in self.messages[:-1]]

    @property
    def deltas(self) -> list[Message]:
        return [message for message in self.messages[:-1] if message.event["__typename"] == "TextDelta"]

    @property
    def text(self) -> str:
        return "".join(message.event["text"] for message in self.deltas)

    @property
    def completed(self) -> Mapping[str, Any]:
        [last] = [event for event in self.events if event["__typename"] == "GenerationCompleted"]
        return last


async def ask(parley: Parley, model: str, message: str, max_tokens: int | None = None) -> Reply:
    """One reply from its start to its end. Its numbers tile the log from 1 on without a gap."""
    answers = parley.subscribe(ASK, model=model, message=message, maxTokens=max_tokens)
    reply = Reply([answer async for answer in answers])
    assert reply.messages[-1].content == {"complete": True}
    reached = 0
    for event in reply.events:
        assert event.get("fromSeq", event["seq"]) == reached + 1
        reached = event["seq"]
    assert reply.events[0]["__typename"] == "GenerationStarted"
    assert reply.events[-1] == reply.completed
    return reply


def tokens(message: str, reply: str) -> tuple[int, int]:
    """How many the model's own tokenizer makes of a prompt and of a reply, read from its GGUF file by
    transformers in another process; the token that ends the reply included."""
    program = f"""
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(MODELS_PATH / DEMO)!r}, gguf_file={DEMO + ".Q4_1.gguf"!r})
chat = [{{"role": "user", "content": {message!r}}}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
texts = (prompt, {reply!r} + tokenizer.eos_token)
print(*(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts))
"""
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    prompt, completion = result.stdout.split()
    return int(prompt), int(completion)


async def assert_stored(parley: Parley, reply: Reply) -> None:
    """The rows that one reply leaves behind."""
    completed = reply.completed
    async with parley.database() as database:
        row = await database.fetchrow(
            """
            SELECT g.status, m.status AS message_status, m.content, m.model, u.content AS asked,
                   c.head_id = m.id AS is_head, m.prompt_tokens, m.completion_tokens,
                   s.prompt_tokens AS prompt_counted, s.completion_tokens AS completion_counted
            FROM generations g
            JOIN messages m ON m.id = g.message_id
            JOIN messages u ON u.id = m.parent_id
            JOIN conversations c ON c.id = g.conversation_id
            JOIN model_usage_stats s ON s.generation_id = g.id
            WHERE g.id = $1
            """,
            UUID(reply.events[0]["generationId"]),
        )
    assert row is not None
    usage = (completed["usage"]["promptTokens"], completed["usage"]["completionTokens"])
    model = completed["message"]["model"]
    assert (row["status"], row["message_status"]) == ("completed", "completed")
    assert (row["asked"], row["content"], row["model"]) == (CAPITAL, reply.text, model)
    assert row["is_head"]
    assert (row["prompt_tokens"], row["completion_tokens"]) == usage
    assert (row["prompt_counted"], row["completion_counted"]) == usage


def assert_streamed(reply: Reply) -> None:
    """It was seen while it was written, and not at its end."""
    assert len(reply.deltas) >= 15
    assert reply.deltas[0].at < reply.messages[-1].at / 3
    assert reply.completed["usage"]["completionTokens"] == 60
    assert reply.completed["finishReason"] == "LENGTH"


async def test_a_local_model_says_paris(parley: Parley) -> None:
    reply = await ask(parley, f"hf:{DEMO}", CAPITAL)
    assert "Paris" in reply.text
    message, usage = reply.completed["message"], reply.completed["usage"]
    assert message["content"] == reply.text
    assert (message["model"], message["status"]) == (f"hf:{DEMO}", "COMPLETED")
    assert usage["source"] == "PROVIDER"
    assert (usage["promptTokens"], usage["completionTokens"]) == tokens(CAPITAL, reply.text)
    assert usage["totalTokens"] == usage["promptTokens"] + usage["completionTokens"]
    await assert_stored(parley, reply)


async def test_a_local_model_is_seen_writing(parley: Parley) -> None:
    await ask(parley, f"hf:{DEMO}", CAPITAL, 1)  # loads it
    assert_streamed(await ask(parley, f"hf:{DEMO}", "Tell me a long story about a fox.", 60))


@needs_ollama
@pytest.mark.parametrize("name", ["ollama:smollm2:135m", "smollm2:135m"])
async def test_ollama_says_paris_under_its_full_and_its_bare_name(name: str, parley: Parley) -> None:
    reply = await ask(parley, name, CAPITAL)
    assert "Paris" in reply.text
    assert reply.completed["message"]["content"] == reply.text
    assert reply.completed["message"]["model"] == "ollama:smollm2:135m"
    assert reply.completed["usage"]["source"] == "PROVIDER"
    await assert_stored(parley, reply)


@needs_ollama
async def test_ollama_is_seen_writing(parley: Parley) -> None:
    await ask(parley, "smollm2:135m", CAPITAL, 1)  # loads it
    assert_streamed(await ask(parley, "smollm2:135m", "Tell me a long story about a fox.", 60))


MODELS = """
{
  availableModels {
    name type source displayName state
    provider { name prefix }
    capabilities { supportsStreaming maxContextLength }
    metadata { size parameters architecture quantization license lastUpdated }
  }
}
"""


async def test_available_models_have_real_metadata(parley: Parley) -> None:
    listed = {model["name"]: model for model in (await parley.query(MODELS))["availableModels"]}
    expected = {f"hf:{DEMO}": "huggingface"}
    if "OLLAMA_HOST" in os.environ:
        expected["ollama:smollm2:135m"] = "ollama"
    for name, provider in expected.items():
        model = listed[name]
        assert model["provider"]["name"] == provider
        assert model["type"] == "CHAT"
        assert model["capabilities"] == {"supportsStreaming": True, "maxContextLength": 8192}
        metadata = model["metadata"]
        assert int(metadata["size"]) == pytest.approx(98.4e6, rel=0.01)
        assert int(metadata["parameters"]) == 134_515_008
        assert metadata["architecture"] == "llama"
        assert metadata["lastUpdated"]


async def test_the_conversation_reads_back(parley: Parley) -> None:
    reply = await ask(parley, f"hf:{DEMO}", CAPITAL)
    conversation_id = reply.events[0]["conversation"]["id"]
    found = await parley.query(
        """
        query ($id: ID!) {
          conversation(id: $id) { title model messages { edges { node { role content } } } }
        }
        """,
        id=conversation_id,
    )
    conversation = found["conversation"]
    assert (conversation["title"], conversation["model"]) == (CAPITAL, f"hf:{DEMO}")
    nodes = [edge["node"] for edge in conversation["messages"]["edges"]]
    assert nodes == [{"role": "USER", "content": CAPITAL}, {"role": "ASSISTANT", "content": reply.text}]
