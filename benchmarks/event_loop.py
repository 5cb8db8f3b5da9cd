"""The longest that anything holds up the server's event loop while fifty replies run over both providers.

    .venv/bin/python -m benchmarks.event_loop [--streams 50]

Prints the longest callbacks. The server runs in this process, on asyncio's own loop because uvloop's cannot
be watched; every callback that the loop runs is timed. The clients run in another process.
"""

import argparse
import asyncio
import heapq
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from server.app import create_app
from server.settings import read_settings
from tests.graphql_client import GraphQLClient
from tests.server.live import live

ROOT = Path(__file__).parent.parent
MODELS = ("hf:SmolLM2-135M-Instruct", "ollama:smollm2:135m")
KEPT = 5
SEND = """
subscription ($message: String!, $model: String!) {
  streamMessage(input: {message: $message, model: $model, options: {temperature: 0, maxTokens: 16}}) {
    __typename
    ... on TextDelta { text }
    ... on GenerationFailed { error { message } }
  }
}
"""


class Watch:
    """Times every callback of the loop, and keeps the longest: its seconds, and of these the ones in which
    the processor worked on it and not on another process."""

    def __init__(self) -> None:
        self.longest: list[tuple[float, float]] = []
        self.count = 0

    def wrap(self, run: Callable[[asyncio.Handle], None]) -> Callable[[asyncio.Handle], None]:
        def timed(handle: asyncio.Handle) -> None:
            started, worked = time.perf_counter(), time.thread_time()
            run(handle)
            took = time.perf_counter() - started, time.thread_time() - worked
            self.count += 1
            if len(self.longest) < KEPT:
                heapq.heappush(self.longest, took)
            elif took > self.longest[0]:
                heapq.heapreplace(self.longest, took)

        return timed


async def serve(streams: int) -> None:
    watch = Watch()
    asyncio.Handle._run = watch.wrap(asyncio.Handle._run)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix="parley-") as data_dir:
        overrides = {
            "PARLEY_DATA_DIR": data_dir,
            "HUGGINGFACE_CACHE_DIR": ROOT / ".parley/cache/huggingface",
            "HUGGINGFACE_MODELS_PATH": ROOT / "models/huggingface",
        }
        app = create_app(read_settings(overrides))
        async with app.router.lifespan_context(app), live(app) as port:
            watch.longest.clear()  # what starting took
            clients = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.event_loop", "--streams", str(streams)),
                *("--url", f"http://127.0.0.1:{port}/graphql"),
                cwd=ROOT,
            )
            if await clients.wait():
                raise SystemExit("the clients failed")
            longest = sorted(watch.longest, reverse=True)
    print(f"{watch.count} callbacks; the longest:")
    for seconds, worked in longest:
        print(f"{seconds * 1000:8.1f} ms, of it at work {worked * 1000:.1f} ms")


async def ask(url: str, streams: int) -> None:
    client = GraphQLClient(url, patience_seconds=300)
    models = MODELS if "OLLAMA_HOST" in os.environ else MODELS[:1]

    async def reply(number: int) -> None:
        message = f"Name {number + 2} animals that live in the sea."
        async with client.socket() as socket:
            operation = await socket.subscribe(SEND, message=message, model=models[number % len(models)])
            *_, last = await operation.rest()
        if last["__typename"] != "GenerationCompleted":
            raise SystemExit(f"a reply ended with {last}")

    started = time.perf_counter()
    await asyncio.gather(*(reply(number) for number in range(streams)))
    print(f"{streams} replies over {' and '.join(models)} in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--streams", type=int, default=50)
    arguments.add_argument("--url", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    asyncio.run(ask(options.url, options.streams) if options.url else serve(options.streams))
