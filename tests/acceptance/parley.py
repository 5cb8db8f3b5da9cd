"""``parley serve`` as a process, seen from outside: its log, its answers, its database, its end."""

import asyncio
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from db.database import Database
from db.embedded import embedded_postgres

ROOT = Path(__file__).parents[2]
MODELS_PATH = ROOT / "models/huggingface"
CACHE_DIR = ROOT / ".parley/cache/huggingface"
DEMO = "SmolLM2-135M-Instruct"

_READY = "Parley is ready: "
_START_SECONDS = 60
_REPLY_SECONDS = 120
_STOP_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Message:
    """One line of the client's: what came, ``at`` seconds after the request."""

    at: float
    content: Mapping[str, Any]

    @property
    def event(self) -> Mapping[str, Any]:
        """The single field of a ``next`` message's data. Errors in it fail the test."""
        result = self.content["next"]
        assert not result.get("errors"), result
        [event] = result["data"].values()
        assert isinstance(event, dict)
        return event


@dataclass(frozen=True, slots=True)
class Parley:
    process: Process
    url: str
    data_dir: Path
    log: Path

    async def query(self, document: str, **variables: object) -> Mapping[str, Any]:
        """The data of a GraphQL request by POST. Errors fail the test."""
        async with httpx.AsyncClient(timeout=_REPLY_SECONDS, trust_env=False) as client:
            body = {"query": document, "variables": variables}
            response = await client.post(f"{self.url}/graphql", json=body)
        result = response.json()
        assert not result.get("errors"), result
        data = result["data"]
        assert isinstance(data, dict)
        return data

    async def subscribe(self, document: str, **variables: object) -> AsyncGenerator[Message]:
        """What the public npm client ``graphql-ws`` receives, to the end."""
        url = self.url.replace("http", "ws", 1) + "/graphql"
        async with aclosing(_client("subscribe.mjs", url, document, variables)) as messages:
            async for message in messages:
                yield message

    async def stream(self, script: str, document: str, **variables: object) -> AsyncGenerator[Message]:
        """What a public npm client of event streams receives; ``script`` in tests/node is how it is used."""
        async with aclosing(_client(script, f"{self.url}/graphql", document, variables)) as messages:
            async for message in messages:
                yield message

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        """The server's own, joined as another server on the same data directory would."""
        async with embedded_postgres(self.data_dir / "postgres") as url, Database.open(url) as database:
            yield database

    async def says(self, words: str) -> None:
        """Return when a line with these words has been printed."""
        assert self.process.stdout
        async with asyncio.timeout(_STOP_SECONDS):
            while words not in (line := (await self.process.stdout.readline()).decode()):
                assert line, f"the server ended without {words!r}"

    async def logged(self) -> str:
        return await asyncio.to_thread(self.log.read_text)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop, and return its exit status."""
        self.process.send_signal(number)
        async with asyncio.timeout(_STOP_SECONDS):
            return await self.process.wait()


async def _client(
    script: str, url: str, document: str, variables: Mapping[str, object]
) -> AsyncGenerator[Message]:
    """What a script of tests/node prints, line by line."""
    node = shutil.which("node")
    if node is None or not (ROOT / "tests/node/node_modules").is_dir():
        pytest.skip("needs node, and `npm ci` in tests/node")
    path = str(ROOT / "tests/node" / script)
    client = await asyncio.create_subprocess_exec(node, path, url, stdin=PIPE, stdout=PIPE)
    assert client.stdin
    assert client.stdout
    try:
        client.stdin.write(json.dumps({"query": document, "variables": variables}).encode())
        client.stdin.close()
        async with asyncio.timeout(_REPLY_SECONDS):
            while line := await client.stdout.readline():
                content = json.loads(line)
                yield Message(content.pop("at"), content)
    finally:
        if client.returncode is None:
            client.terminate()
        await client.wait()


@asynccontextmanager
async def serving(data_dir: Path, **settings: str) -> AsyncIterator[Parley]:
    """A server that is ready, on a free port, without anything of this environment but OLLAMA_HOST."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "OLLAMA_HOST") if name in os.environ}
    environment |= {"HUGGINGFACE_MODELS_PATH": str(MODELS_PATH), "HUGGINGFACE_CACHE_DIR": str(CACHE_DIR)}
    log = data_dir / "server.log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server", "serve", "--port", "0", "--data-dir", str(data_dir)),
            cwd=data_dir,
            env={**environment, "PARLEY_SCRIPTED": "true", **settings},
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=errors,
        )
    try:
        yield Parley(process, await _url(process, log), data_dir, log)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _url(process: Process, log: Path) -> str:
    assert process.stdout
    async with asyncio.timeout(_START_SECONDS):
        while line := (await process.stdout.readline()).decode():
            if line.startswith(_READY):
                return line.removeprefix(_READY).split()[0].removesuffix("/graphql")
    raise AssertionError(f"the server ended before it was ready:\n{await asyncio.to_thread(log.read_text)}")
