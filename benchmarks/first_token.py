"""First token and tokens per second through Parley, against the same model asked directly.

    .venv/bin/python -m benchmarks.first_token [--runs 5] [--tokens 64]

Prints one table. Local Hugging Face is compared with plain ``generate`` in a process of its own, with the
same weights, precision and threads; Ollama (at OLLAMA_HOST) with its own ``/api/chat``. Ways alternate, run
by run, and every prompt begins differently, so that no prompt cache helps whoever comes second.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from websockets.asyncio.client import ClientConnection, connect

ROOT = Path(__file__).parent.parent
HF_MODEL = "SmolLM2-135M-Instruct"
OLLAMA_MODEL = "smollm2:135m"
SUBSCRIPTION = """
subscription ($input: MessageInput!) {
  streamMessage(input: $input) {
    __typename
    ... on GenerationCompleted { usage { completionTokens } }
    ... on GenerationFailed { error { code message } }
  }
}
"""


@dataclass(frozen=True, slots=True)
class Run:
    first_token_ms: float
    tokens_per_second: float


Way = Callable[[str, int], Awaitable[Run]]


def timed(started: float, first: float | None, ended: float, tokens: int) -> Run:
    if first is None or tokens < 2:
        raise SystemExit(f"a run gave {tokens} tokens: nothing to measure")
    return Run((first - started) * 1000, (tokens - 1) / (ended - first))


@asynccontextmanager
async def parley() -> AsyncIterator[str]:
    """A server of our own on a free port; yields its host and port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = (sys.executable, "-m", "server", "serve", "--port", str(port), "--data-dir")
    with tempfile.TemporaryDirectory(prefix="parley-") as data_dir:
        cache = {"HUGGINGFACE_CACHE_DIR": str(ROOT / ".parley/cache/huggingface")}
        process = await asyncio.create_subprocess_exec(
            *command, data_dir, cwd=ROOT, env=cache | os.environ, stdout=asyncio.subprocess.DEVNULL
        )
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                while not await is_ready(client):  # noqa: ASYNC110 - another process has no event to wait for
                    await asyncio.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            await process.wait()


async def is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/ready")).is_success
    except httpx.TransportError:
        return False


class ThroughParley:
    """One WebSocket for all runs, as a chat page keeps it."""

    def __init__(self, socket: ClientConnection, model: str) -> None:
        self._socket = socket
        self._model = model
        self._number = 0

    async def __call__(self, prompt: str, tokens: int) -> Run:
        self._number += 1
        options = {"temperature": 0, "maxTokens": tokens}
        variables = {"input": {"message": prompt, "model": self._model, "options": options}}
        payload = {"query": SUBSCRIPTION, "variables": variables}
        first, count = None, 0
        started = time.perf_counter()
        await self._socket.send(
            json.dumps({"id": f"{self._model} {self._number}", "type": "subscribe", "payload": payload})
        )
        async for message in self._socket:
            answer = json.loads(message)
            if answer["type"] == "complete":
                break
            if answer["type"] != "next" or answer["payload"].get("errors"):
                raise SystemExit(f"Parley answered {message!r}")
            event = answer["payload"]["data"]["streamMessage"]
            if event["__typename"] == "TextDelta":
                first = first or time.perf_counter()
            if event["__typename"] == "GenerationFailed":
                raise SystemExit(f"the reply failed: {event['error']}")
            if event["__typename"] == "GenerationCompleted":
                count = event["usage"]["completionTokens"]
                return await self._rest(timed(started, first, time.perf_counter(), count))
        raise SystemExit("the stream ended without its terminal event")

    async def _rest(self, run: Run) -> Run:
        """Read up to ``complete``, so that the next run finds the socket empty."""
        async for message in self._socket:
            if json.loads(message)["type"] == "complete":
                break
        return run


@asynccontextmanager
async def through_parley(address: str, model: str) -> AsyncIterator[Way]:
    url = f"ws://{address}/graphql"
    async with connect(url, subprotocols=["graphql-transport-ws"]) as websocket:  # type: ignore[list-item]
        await websocket.send(json.dumps({"type": "connection_init"}))
        await websocket.recv()
        yield ThroughParley(websocket, model)


@asynccontextmanager
async def straight_to_ollama(host: str) -> AsyncIterator[Way]:
    async with httpx.AsyncClient(base_url=host, timeout=300) as client:

        async def run(prompt: str, tokens: int) -> Run:
            body = {
                "model": OLLAMA_MODEL,
                "messages": [{"role": "user", "content": prompt}],
                "options": {"temperature": 0, "num_predict": tokens},
            }
            first = None
            started = time.perf_counter()
            async with client.stream("POST", "/api/chat", json=body) as response:
                async for line in response.aiter_lines():
                    chunk = json.loads(line)
                    if chunk["message"]["content"]:
                        first = first or time.perf_counter()
                    if chunk["done"]:
                        return timed(started, first, time.perf_counter(), chunk["eval_count"])
            raise SystemExit("Ollama's stream ended without its last line")

        yield run


@asynccontextmanager
async def straight_to_generate(threads: int) -> AsyncIterator[Way]:
    """``benchmarks/plain_generate.py`` in a process of its own, one JSON line per question and answer."""
    folder = await asyncio.to_thread(converted_model)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.plain_generate", folder, str(threads),
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    await process.stdout.readline()

    async def run(prompt: str, tokens: int) -> Run:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps({"prompt": prompt, "tokens": tokens}).encode() + b"\n")
        answer = json.loads(await process.stdout.readline())
        return Run(answer["first_token_ms"], answer["tokens_per_second"])

    try:
        yield run
    finally:
        process.stdin.close()
        await process.wait()


def converted_model() -> Path:
    """The folder that Parley itself loads the demo model from."""
    folders = [path.parent for path in (ROOT / ".parley/cache/huggingface").rglob("*.safetensors")]
    if not folders:
        raise SystemExit("the demo model is not there yet: run `make serve` once, or `parley pull demo`")
    return folders[0]


def prompt_number(number: int) -> str:
    return f"{number} is my lucky number. Tell me a long story about a lighthouse keeper and the sea."


async def compare(name: str, direct: Way, through: Way, runs: int, tokens: int) -> None:
    for way in (direct, through):
        await way(prompt_number(0), tokens)  # loads the model
    results: dict[str, list[Run]] = {"direct": [], "through Parley": []}
    for number in range(runs):
        for offset, (label, way) in enumerate(zip(results, (direct, through), strict=True)):
            results[label].append(await way(prompt_number(1000 + 2 * number + offset), tokens))
    medians = {}
    for label, measured in results.items():
        first = [run.first_token_ms for run in measured]
        speed = [run.tokens_per_second for run in measured]
        medians[label] = (statistics.median(first), statistics.median(speed))
        print(
            f"{name:<34} {label:<15} {statistics.median(first):8.1f} ({min(first):.1f} to {max(first):.1f})"
            f"   {statistics.median(speed):6.1f} ({min(speed):.1f} to {max(speed):.1f})"
        )
    (direct_first, direct_speed), (through_first, through_speed) = medians.values()
    print(
        f"{'':<34} {'difference':<15} {through_first - direct_first:+8.1f} ms"
        f"{'':<15} ratio {through_speed / direct_speed:.3f}\n"
    )


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=64)
    options = arguments.parse_args()
    threads = max(1, (os.cpu_count() or 2) - 1)
    print(f"{options.runs} alternated runs, {options.tokens} tokens, {threads} threads: median (min to max)")
    print(f"{'model':<34} {'way':<15} {'first token, ms':<27} tokens/s")
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(parley())
        hf = await stack.enter_async_context(through_parley(address, f"hf:{HF_MODEL}"))
        generate = await stack.enter_async_context(straight_to_generate(threads))
        await compare(f"hf:{HF_MODEL}", generate, hf, options.runs, options.tokens)
        if host := os.environ.get("OLLAMA_HOST"):
            ollama = await stack.enter_async_context(through_parley(address, f"ollama:{OLLAMA_MODEL}"))
            direct = await stack.enter_async_context(straight_to_ollama(host))
            await compare(f"ollama:{OLLAMA_MODEL}", direct, ollama, options.runs, options.tokens)


if __name__ == "__main__":
    asyncio.run(main())
