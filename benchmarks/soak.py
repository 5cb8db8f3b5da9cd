"""What an hour of readers who come and go leaves behind in a server.

    .venv/bin/python -m benchmarks.soak [--minutes 60] [--clients 30] [--warm-up 10]

Prints one line a minute: the server's own memory, its tasks, open descriptors and database connections, and
how many replies were read to their end. Clients live in another process. Each sends a scripted reply, over
a socket or as an event stream; reads a random part; vanishes or unsubscribes; comes back behind what it
had, now and then stops it; and checks that the whole came exactly once. At the end comes the slope of the
memory after the warm-up.
"""

import argparse
import asyncio
import gc
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import uvloop

from server.app import Parts, create_app
from server.settings import read_settings
from tests.event_stream import event_stream, events
from tests.graphql_client import GraphQLClient, Json
from tests.server.live import live

MIB = 1024 * 1024
EVENT = """
  __typename generationId seq
  ... on TextDelta { text fromSeq }
  ... on GenerationCompleted { message { content } }
  ... on GenerationStopped { message { content } }
"""
SEND = "subscription ($input: MessageInput!) { streamMessage(input: $input) {" + EVENT + "} }"
WATCH = "subscription ($id: ID!, $after: Int) { generation(id: $id, after: $after) {" + EVENT + "} }"
STOP = "mutation ($id: ID!) { stopGeneration(id: $id) { status } }"
ENDS = ("GenerationCompleted", "GenerationStopped")


async def over_socket(client: GraphQLClient, query: str, variables: Json) -> AsyncGenerator[Json]:
    """The events; closed early the client unsubscribes or its network is gone, by chance."""
    async with client.socket() as socket:
        operation = await socket.subscribe(query, **variables)
        try:
            async with aclosing(operation.events()) as found:
                async for event in found:
                    yield event
        except GeneratorExit:
            if random.random() < 0.5:
                await operation.complete()
            else:
                socket.drop()
            raise


async def over_event_stream(client: GraphQLClient, query: str, variables: Json) -> AsyncGenerator[Json]:
    async with event_stream(client, query, **variables) as response, aclosing(events(response)) as found:
        async for event in found:
            if event.name == "next":
                yield event.value


async def read_in_pieces(client: GraphQLClient) -> None:
    """One reply, from sending it to its end. Raises AssertionError if anything came twice or not at all."""
    script = f"scripted:words {random.randint(20, 300)} every 20ms"
    query, text, seq = SEND, "", 0
    variables: Json = {"input": {"message": "hello", "model": script}}
    while True:
        way = random.choice((over_socket, over_event_stream))
        patience = random.randint(1, 60)
        async with aclosing(way(client, query, variables)) as found:
            async for event in found:
                assert event.get("fromSeq", event["seq"]) == seq + 1, f"{event} after {seq}"
                seq = event["seq"]
                text += event.get("text", "")
                if event["__typename"] in ENDS:
                    assert event["message"]["content"] == text
                    return
                patience -= 1
                if patience <= 0:
                    break
        query, variables = WATCH, {"id": event["generationId"], "after": seq}
        if random.random() < 0.05:
            await client.ask(STOP, id=event["generationId"])


async def client_loop(url: str, until: float) -> None:
    client = GraphQLClient(url, patience_seconds=60)
    async with client.http:
        while time.monotonic() < until:
            await read_in_pieces(client)
            print("read", flush=True)


async def load(url: str, clients: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client_loop(url, until))


@dataclass(frozen=True, slots=True)
class Sample:
    memory_mib: float
    tasks: int
    descriptors: int
    connections: int

    @classmethod
    async def taken(cls, parts: Parts) -> "Sample":
        gc.collect()
        process = psutil.Process()
        connections: int = await parts.database.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'parley%'"
        )
        return cls(
            process.memory_full_info().pss / MIB, len(asyncio.all_tasks()), process.num_fds(), connections
        )

    def __str__(self) -> str:
        return f"{self.memory_mib:10.1f}{self.tasks:8}{self.descriptors:13}{self.connections:13}"


@asynccontextmanager
async def parley() -> AsyncIterator[tuple[Parts, str]]:
    with tempfile.TemporaryDirectory(prefix="parley-") as data_dir:
        overrides: dict[str, Any] = {
            "PARLEY_DATA_DIR": data_dir,
            "PARLEY_SCRIPTED": True,
            "HUGGINGFACE_ENABLED": False,
            "OLLAMA_ENABLED": False,
            "DEFAULT_MODEL_PROVIDER": "scripted",
        }
        app = create_app(read_settings(overrides))
        async with app.router.lifespan_context(app), live(app) as port:
            yield app.state.parts, f"http://127.0.0.1:{port}/graphql"


async def soak(minutes: float, clients: int, warm_up: float) -> None:
    async with parley() as (parts, url):
        before = await Sample.taken(parts)
        print(
            f"{'minute':<8}{'PSS, MiB':>10}{'tasks':>8}{'descriptors':>13}{'connections':>13}{'replies':>10}"
        )
        print(f"{'start':<8}{before}{0:10}", flush=True)
        loading = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.soak", "--clients", str(clients)),
            *("--minutes", str(minutes), "--load", url),
            stdout=asyncio.subprocess.PIPE,
        )
        assert loading.stdout
        replies: Counter[str] = Counter()
        counting = asyncio.create_task(counted(loading.stdout, replies))
        began, samples = time.monotonic(), []
        while loading.returncode is None:
            try:
                async with asyncio.timeout(60):
                    await loading.wait()
            except TimeoutError:
                minute = (time.monotonic() - began) / 60
                sample = await Sample.taken(parts)
                if minute >= warm_up:
                    samples.append((minute, sample.memory_mib))
                print(f"{minute:<8.0f}{sample}{replies['read']:10}", flush=True)
        await counting
        after = await Sample.taken(parts)
        print(f"{'end':<8}{after}{replies['read']:10}")
        if len(samples) > 1:
            slope = statistics.linear_regression(*zip(*samples, strict=True)).slope
            print(f"memory after the first {warm_up:g} minutes: {slope * 10:+.2f} MiB per 10 minutes")
        print("every reply came exactly once" if loading.returncode == 0 else "A REPLY WAS WRONG: see above")


async def counted(lines: asyncio.StreamReader, replies: Counter[str]) -> None:
    async for line in lines:
        replies[line.decode().strip()] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--warm-up", type=float, default=10.0, metavar="MINUTES")
    parser.add_argument("--load", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        os.nice(5)  # clients that fall behind are what slow readers are
        uvloop.run(load(arguments.load, arguments.clients, arguments.minutes * 60))
    else:
        uvloop.run(soak(arguments.minutes, arguments.clients, arguments.warm_up))


if __name__ == "__main__":
    main()
