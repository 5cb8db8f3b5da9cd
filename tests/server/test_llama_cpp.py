"""A real llama.cpp server as a provider, through GraphQL."""

from pathlib import Path

import httpx

from server.app import create_app
from server.settings import read_settings
from tests.graphql_client import GraphQLClient
from tests.providers.llama_cpp import ALIAS, KEY, WINDOW, llama_cpp
from tests.server.live import live

QUESTION = "What is the capital of France?"
STREAM = """
subscription ($message: String!) {
  streamMessage(input: {message: $message, options: {temperature: 0, maxTokens: 20}}) {
    __typename
    ... on GenerationStarted { model }
    ... on TextDelta { text }
    ... on GenerationCompleted {
      message { content provider }
      finishReason
      usage { promptTokens completionTokens source }
    }
  }
}
"""
MODELS = '{ availableModels(provider: "llama") { name state capabilities { maxContextLength } } }'


async def test_a_named_server_answers_with_its_own_usage(tmp_path: Path, database_url: str) -> None:
    """P1, P2, P5: the default model of the default provider, which nobody had to name."""
    async with llama_cpp() as url:
        settings = read_settings(
            {
                "DATABASE_URL": database_url,
                "PARLEY_DATA_DIR": str(tmp_path),
                "HUGGINGFACE_ENABLED": False,
                "OLLAMA_ENABLED": False,
                "DEFAULT_MODEL_PROVIDER": "llama",
                "PARLEY_PROVIDER_LLAMA_BASE_URL": url,
                "PARLEY_PROVIDER_LLAMA_API_KEY": KEY,
                "PARLEY_PROVIDER_LLAMA_DEFAULT_MODEL": ALIAS,
            }
        )
        app = create_app(settings)
        async with app.router.lifespan_context(app), live(app) as port:
            client = GraphQLClient(f"http://127.0.0.1:{port}/graphql")
            async with client.http, client.socket() as socket:
                listed = await client.ask(MODELS)
                stream = await socket.subscribe(STREAM, message=QUESTION)
                started, *events, completed = [event async for event in stream.events()]
        direct = {"model": ALIAS, "messages": [{"role": "user", "content": QUESTION}]}
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            answer = await http.post(
                f"{url}/chat/completions",
                headers={"authorization": f"Bearer {KEY}"},
                json=direct | {"temperature": 0, "max_tokens": 20},
            )
    told = answer.json()
    assert listed == [
        {"name": f"llama:{ALIAS}", "state": "READY", "capabilities": {"maxContextLength": WINDOW}}
    ]
    assert started["model"] == f"llama:{ALIAS}"
    text = "".join(event["text"] for event in events if event["__typename"] == "TextDelta")
    assert text == told["choices"][0]["message"]["content"]
    assert completed["message"] == {"content": text, "provider": "llama"}
    assert completed["usage"] == {
        "promptTokens": told["usage"]["prompt_tokens"],
        "completionTokens": told["usage"]["completion_tokens"],
        "source": "PROVIDER",
    }
