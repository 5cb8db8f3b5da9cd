"""How soon Stop stops: for the client, and in the place where the tokens come from.

    .venv/bin/python -m benchmarks.stop [--runs 5]

Prints one table. The terminal event is timed from sending ``stopGeneration`` to receiving it on the socket
that streams the reply; from another replica, to receiving it there and at the one that writes. Then the local
model's worker is asked for its step counter twice, and a proxy before Ollama (at OLLAMA_HOST) notes when its
connection was closed. Servers, clients and proxy share one event loop, so every figure is an upper bound.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from db.embedded import embedded_postgres
from providers.huggingface.provider import HuggingFace
from server.app import Parts, create_app
from server.settings import read_settings
from tests.graphql_client import GraphQLClient, Operation, Socket
from tests.providers.proxy import FaultProxy
from tests.providers.replay import answer, replay_server
from tests.server.live import live

_WIDTH = 58
ROOT = Path(__file__).parent.parent
HF_MODEL = "SmolLM2-135M-Instruct"
SEND = """
subscription ($model: String) {
  streamMessage(input: {message: "Tell me a long story about a fox.", model: $model}) {
    __typename generationId
    ... on TextDelta { text }
    ... on GenerationStopped { message { content } }
  }
}
"""
WATCH = "subscription ($id: ID!) { generation(id: $id) { __typename } }"
STOP = "mutation ($id: ID!) { stopGeneration(id: $id) { status } }"


@asynccontextmanager
async def parley(
    ollama_host: str, refusing_url: str, database_url: str
) -> AsyncIterator[tuple[Parts, GraphQLClient]]:
    """One replica on that database, whose default model refuses, so that the next one answers."""
    with tempfile.TemporaryDirectory(prefix="parley-") as data_dir:
        overrides = {
            "DATABASE_URL": database_url,
            "PARLEY_DATA_DIR": data_dir,
            "PARLEY_SCRIPTED": True,
            "OLLAMA_HOST": ollama_host,
            "PARLEY_PROVIDER_REFUSING_BASE_URL": refusing_url,
            "DEFAULT_MODEL_PROVIDER": "refusing",
            "PARLEY_FALLBACK_ORDER": "scripted",
            "HUGGINGFACE_CACHE_DIR": ROOT / ".parley/cache/huggingface",
            "HUGGINGFACE_MODELS_PATH": ROOT / "models/huggingface",
        }
        app = create_app(read_settings(overrides))
        async with app.router.lifespan_context(app), live(app) as port:
            yield app.state.parts, GraphQLClient(f"http://127.0.0.1:{port}/graphql", patience_seconds=120)


@asynccontextmanager
async def refusing() -> AsyncIterator[str]:
    """An OpenAI-compatible server without credit."""
    async with replay_server() as server:
        server.answers["/v1/models"] = (answer({"data": [{"id": "gpt"}]}),)
        refusal = {"error": {"message": "no credit is left", "code": "insufficient_quota"}}
        server.answers["/v1/chat/completions"] = (answer(refusal, status=429),)
        yield f"{server.url}/v1"


async def begun(socket: Socket, model: str | None, after: str = "TextDelta") -> tuple[Operation, str]:
    """A reply that has got as far as the first event of this type."""
    operation = await socket.subscribe(SEND, model=model)
    seen = await operation.until(after)
    return operation, seen[-1]["generationId"]


async def stop(client: GraphQLClient, operation: Operation, generation_id: str) -> tuple[float, float]:
    """Milliseconds to the terminal event, and the loop's time of the request."""
    clock = asyncio.get_running_loop().time
    asked = clock()
    stopping = asyncio.create_task(client.ask(STOP, id=generation_id))
    await operation.until("GenerationStopped")
    took = (clock() - asked) * 1000
    await stopping
    return took, asked


def row(phase: str, measured: list[float]) -> None:
    print(f"{phase:<{_WIDTH}} {statistics.median(measured):8.1f} {min(measured):8.1f} {max(measured):8.1f}")


PHASES = {
    "queued": ("scripted:queue 60s", "PhaseChanged"),
    "loading": ("scripted:load 60s", "PhaseChanged"),
    "waiting for the first token": ("scripted:wait 60s", "PhaseChanged"),
    "waiting for another try": ("scripted:error overloaded retry-after 30s", "PhaseChanged"),
    "another model is asked": (None, "ModelSwitched"),
    "streaming": ("scripted:words 100000 every 5ms", "TextDelta"),
    "stalled": ("scripted:words 3;stall", "TextDelta"),
}


async def scripted_phases(client: GraphQLClient, runs: int) -> None:
    for phase, (model, after) in PHASES.items():
        took = []
        for _ in range(runs):
            async with client.socket() as socket:
                operation, generation_id = await begun(socket, model, after)
                took.append((await stop(client, operation, generation_id))[0])
        row(f"scripted, {phase}", took)


async def another_replica(writer: GraphQLClient, other: GraphQLClient, runs: int) -> None:
    """Stopped at the other, until who watches there and who watches at the writer's have seen the end."""
    for phase, (model, after) in PHASES.items():
        took = []
        for _ in range(runs):
            async with writer.socket() as socket, other.socket() as others:
                operation, generation_id = await begun(socket, model, after)
                watching = await others.subscribe(WATCH, id=generation_id)
                await watching.until(after)
                at_writer = asyncio.create_task(operation.until("GenerationStopped"))
                _, asked = await stop(other, watching, generation_id)
                await at_writer
                took.append((asyncio.get_running_loop().time() - asked) * 1000)
        row(f"scripted, {phase}, from another replica", took)


async def local_model(parts: Parts, client: GraphQLClient, runs: int) -> None:
    huggingface = parts.registry["huggingface"].provider
    assert isinstance(huggingface, HuggingFace)
    took, steps_after = [], []
    for _ in range(runs):
        async with client.socket() as socket:
            operation, generation_id = await begun(socket, f"hf:{HF_MODEL}")
            took.append((await stop(client, operation, generation_id))[0])
        at_once = (await huggingface.status(HF_MODEL)).steps
        await asyncio.sleep(0.5)
        steps_after.append((await huggingface.status(HF_MODEL)).steps - at_once)
    row("hf, streaming", took)
    print(f"{'hf, steps computed in the half second after':<{_WIDTH}} {sorted(steps_after)}")


async def ollama(client: GraphQLClient, proxy: FaultProxy, runs: int) -> None:
    took, closed = [], []
    for _ in range(runs):
        async with client.socket() as socket:
            operation, generation_id = await begun(socket, "ollama:smollm2:135m")
            before = len(proxy.client_closed_at)
            milliseconds, asked = await stop(client, operation, generation_id)
            await proxy.wait_for(lambda seen: len(seen.client_closed_at) > before, timeout_seconds=10)  # noqa: B023
            took.append(milliseconds)
            closed.append((proxy.client_closed_at[before] - asked) * 1000)
    row("ollama, streaming", took)
    row("ollama, its connection closed", closed)


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--runs", type=int, default=5)
    runs = arguments.parse_args().runs
    async with AsyncExitStack() as stack:
        proxy, host = None, ""
        if real := os.environ.get("OLLAMA_HOST"):
            target = urlsplit(real)
            proxy = await stack.enter_async_context(
                FaultProxy(target.hostname or "", target.port or 11434).running()
            )
            host = proxy.url
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parley-")))
        url = await stack.enter_async_context(embedded_postgres(folder / "postgres"))
        refusing_url = await stack.enter_async_context(refusing())
        parts, client = await stack.enter_async_context(parley(host, refusing_url, url))
        _, other = await stack.enter_async_context(parley(host, refusing_url, url))
        print(f"{f'stop while, {runs} runs, ms':<{_WIDTH}} {'median':>8} {'min':>8} {'max':>8}")
        await scripted_phases(client, runs)
        await another_replica(client, other, runs)
        await local_model(parts, client, runs)
        if proxy:
            await ollama(client, proxy, runs)


if __name__ == "__main__":
    uvloop.run(main())
