"""How long ``availableModels`` takes while a provider's host swallows every connection.

    .venv/bin/python -m benchmarks.model_list [--runs 200]

Prints one table: the first list of a fresh server, and those that follow, each over HTTP from a client in the
same loop, with Ollama's port full and never accepting and with nobody listening there at all.
"""

import argparse
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from server.app import create_app
from server.settings import read_settings
from tests.graphql_client import GraphQLClient
from tests.server.live import live

MODELS = Path(__file__).parent.parent / "models/huggingface"
LIST = "{ availableModels { name provider { name health { status lastError } } } }"


@contextmanager
def black_hole() -> Iterator[str]:
    """A listener whose queue is full, and that never accepts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for connection in waiting:
            connection.close()


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


async def measure(ollama_host: str, runs: int) -> tuple[float, list[float]]:
    """Milliseconds of the first list, and of those after it."""
    with tempfile.TemporaryDirectory(prefix="parley-") as data_dir:
        overrides = {
            "PARLEY_DATA_DIR": data_dir,
            "OLLAMA_HOST": ollama_host,
            "HUGGINGFACE_MODELS_PATH": MODELS,
            "ENABLE_MODEL_MONITORING": False,  # or the first list would be there before it is asked for
        }
        app = create_app(read_settings(overrides))
        async with app.router.lifespan_context(app), live(app) as port:
            client = GraphQLClient(f"http://127.0.0.1:{port}/graphql")
            took = []
            async with client.http:
                for _ in range(runs + 1):
                    began = time.perf_counter()
                    models = await client.ask(LIST)
                    took.append((time.perf_counter() - began) * 1000)
                    assert models, "the other providers' models are missing"
    return took[0], took[1:]


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--runs", type=int, default=200)
    runs = arguments.parse_args().runs
    print(f"{f'Ollama, ms, {runs} runs':<28}{'first':>10}{'median':>10}{'p99':>10}{'max':>10}")
    for name, host in (("black-holed", black_hole), ("not there", closed_port)):
        with host() as url:
            first, warm = await measure(url, runs)
        p99 = sorted(warm)[int(0.99 * len(warm))]
        print(f"{name:<28}{first:10.1f}{statistics.median(warm):10.1f}{p99:10.1f}{max(warm):10.1f}")


if __name__ == "__main__":
    uvloop.run(main())
