"""What goes wrong around Parley, caused for real, and what its clients are told.

"Error" is a GraphQL error before anything is stored; "event" a GenerationFailed, after which the user's
message is kept, with whatever text there was; "RETRYING" the phases before it, one for each further try
(test_retries has those that help). Nothing here ends in a hang or a traceback.

| fault                                | seen as             | code                 | recovers              |
|--------------------------------------|---------------------|----------------------|-----------------------|
| Ollama's port closed                 | RETRYING, event,    | PROVIDER_UNAVAILABLE | with the next message |
|                                      |   health DOWN       |                      |                       |
| nobody accepts at Ollama's port      | RETRYING, event,    | PROVIDER_UNAVAILABLE | with the next message |
|                                      |   health DOWN       |                      |                       |
| Ollama is overloaded                 | RETRYING, event     | OVERLOADED           | with the next message |
|   and says: for long                 | event               | OVERLOADED           | with the next message |
| silent before the first token        | event               | PROVIDER_UNAVAILABLE | with the next message |
| silent in mid-reply                  | event, text kept    | STREAM_BROKEN        | with the next message |
| connection reset in mid-reply        | event, text kept    | STREAM_BROKEN        | with the next message |
| garbage before the first token       | RETRYING, event     | PROVIDER_UNAVAILABLE | with the next message |
| garbage in mid-reply                 | event, text kept    | STREAM_BROKEN        | with the next message |
| end without done:true                | event, text kept    | STREAM_BROKEN        | with the next message |
| weights truncated or corrupt         | event, state FAILED | MODEL_LOAD_FAILED    | when files are mended |
| weights, tokenizer or config missing | event, state FAILED | MODEL_LOAD_FAILED    | when files are mended |
|   or no such model at all            | error               | MODEL_NOT_FOUND      |                       |
| a name that leaves the models path   | error               | MODEL_NOT_FOUND      |                       |
| models path unusable                 | log; default taken  |                      | at the next start     |
| wrong settings                       | the server ends     | exit status 2        |                       |
| disk full, for a new message         | error, or a pause   | DATABASE_UNAVAILABLE | when there is room    |
| disk full, in mid-reply              | a pause, no loss    |                      | when there is room    |
| Postgres gone, for a new message     | error, not ready    | DATABASE_UNAVAILABLE | when it is back       |
| Postgres gone for 1 s, in mid-reply  | a pause, no loss    |                      | when it is back       |
| Postgres gone for 60 s, in mid-reply | a pause, no loss    |                      | when it is back       |
| message empty, or nothing but NULs   | error               | BAD_INPUT            |                       |
| message of a megabyte                | error               | BAD_INPUT            |                       |
| message with NULs in it              | none: it is cleaned |                      |                       |
"""

import asyncio
import fcntl
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.acceptance.parley import DEMO, Parley, serving
from tests.db.processes import eventually, kill_postgres
from tests.graphql_client import GraphQLClient, Json, Refused
from tests.providers.huggingface.tiny_models import write_reciter
from tests.providers.proxy import FaultProxy
from tests.providers.replay import Break, ReplayServer, answer, ndjson, replay_server, stream

SEND = """
subscription ($message: String!, $model: String!) {
  streamMessage(input: {message: $message, model: $model}) {
    __typename
    ... on GenerationStarted { conversation { id } }
    ... on PhaseChanged { phase detail }
    ... on TextDelta { text }
    ... on GenerationCompleted { message { content } }
    ... on GenerationFailed { error { code message } message { content status } }
  }
}
"""
FOX = "ollama:fox:1b"
_HELLO = ndjson({"message": {"role": "assistant", "content": "Hello"}, "done": False})
_END = ndjson({"message": {"content": " there"}, "done": True, "done_reason": "stop"})


@dataclass(frozen=True)
class Said:
    """How one message ended: ``code`` None for a whole reply; ``stored`` says whether it became a
    generation, ``retrying`` what was said before each further try."""

    code: str | None
    message: str
    text: str
    stored: bool
    retrying: tuple[str, ...] = ()


async def say(parley: Parley, model: str = FOX, message: str = "Hi") -> Said:
    client = GraphQLClient(f"{parley.url}/graphql", patience_seconds=120)
    async with client.socket() as socket:
        try:
            events = await (await socket.subscribe(SEND, message=message, model=model)).rest()
        except Refused as refused:
            return Said(refused.code, refused.message, "", stored=False)
    return _ended(events)


def _ended(events: list[Json]) -> Said:
    text = "".join(event["text"] for event in events if event["__typename"] == "TextDelta")
    retrying = tuple(event["detail"] for event in events if event.get("phase") == "RETRYING")
    last = events[-1]
    assert last["message"]["content"] == text
    if last["__typename"] == "GenerationCompleted":
        return Said(None, "", text, stored=True, retrying=retrying)
    assert last["message"]["status"] == "FAILED"
    return Said(last["error"]["code"], last["error"]["message"], text, stored=True, retrying=retrying)


async def health(parley: Parley, provider: str) -> Json:
    query = "{ providers { name health { status lastError } } }"
    listed: list[Json] = (await parley.query(query))["providers"]
    (found,) = (one["health"] for one in listed if one["name"] == provider)
    assert isinstance(found, dict)
    return found


# --- Ollama


@pytest.fixture
async def upstream() -> AsyncIterator[ReplayServer]:
    """An Ollama that says hello, and is well until somebody changes its answers."""
    async with replay_server() as server:
        tag = {"name": "fox:1b", "digest": "f0", "details": {"family": "fox", "parameter_size": "1B"}}
        server.answers = {
            "/api/tags": (answer({"models": [tag]}),),
            "/api/ps": (answer({"models": []}),),
            "/api/show": (answer({"capabilities": ["completion"]}),),
            "/api/chat": stream([_HELLO, _END]),
        }
        yield server


@asynccontextmanager
async def before(upstream: ReplayServer, data_dir: Path) -> AsyncIterator[tuple[Parley, FaultProxy]]:
    """A server that reaches ``upstream`` through a proxy, the port of which is still closed."""
    target = urlsplit(upstream.url)
    proxy = FaultProxy(target.hostname or "", target.port or 0)
    async with proxy.running():
        pass  # it has its port now, and the port is closed
    settings = {"OLLAMA_HOST": proxy.url, "STREAM_TIMEOUT_MS": "1000", "RETRY_DELAY_MS": "50"}
    async with serving(data_dir, **settings) as parley:
        yield parley, proxy


async def test_ollamas_port_is_closed(upstream: ReplayServer, tmp_path: Path) -> None:
    async with before(upstream, tmp_path) as (parley, proxy):
        said = await say(parley)
        assert (said.code, said.stored) == ("PROVIDER_UNAVAILABLE", True)
        for number, detail in enumerate(said.retrying, 2):
            assert f"(try {number} of 4): Ollama at {proxy.url} cannot be reached" in detail
        assert len(said.retrying) == 3
        state = await health(parley, "ollama")
        assert state["status"] == "DOWN"
        assert state["lastError"]
        async with proxy.running():
            assert (await say(parley)).text == "Hello there"


async def test_nobody_accepts_at_ollamas_port(black_hole: str, tmp_path: Path) -> None:
    """M4: whoever does not ask for it does not notice."""
    async with serving(tmp_path, OLLAMA_HOST=black_hole, RETRY_ATTEMPTS="1") as parley:
        said = await say(parley)
        assert (said.code, said.stored, len(said.retrying)) == ("PROVIDER_UNAVAILABLE", True, 1)
        assert (await health(parley, "ollama"))["status"] == "DOWN"
        listed = (await parley.query("{ availableModels { name } }"))["availableModels"]
        assert f"hf:{DEMO}" in [model["name"] for model in listed]
        assert (await say(parley, "scripted:words 3")).text == "w1 w2 w3"


def busy(milliseconds: str) -> bytes:
    return answer({"error": "busy"}, status=429, headers={"retry-after-ms": milliseconds})


@pytest.mark.parametrize(
    ("pieces", "code", "text", "tries"),
    [
        pytest.param((Break.HOLD,), "PROVIDER_UNAVAILABLE", "", 1, id="silent before the first token"),
        pytest.param(stream([_HELLO], Break.HOLD), "STREAM_BROKEN", "Hello", 1, id="silent in mid-reply"),
        pytest.param(stream([_HELLO], Break.RESET), "STREAM_BROKEN", "Hello", 1, id="reset in mid-reply"),
        pytest.param(stream([b"<html>\n"]), "PROVIDER_UNAVAILABLE", "", 4, id="garbage at once"),
        pytest.param(stream([_HELLO, b"}{\n"]), "STREAM_BROKEN", "Hello", 1, id="garbage in mid-reply"),
        pytest.param(stream([_HELLO]), "STREAM_BROKEN", "Hello", 1, id="end without done:true"),
        pytest.param((busy("200"),), "OVERLOADED", "", 4, id="overloaded"),
        pytest.param((busy("60000"),), "OVERLOADED", "", 1, id="overloaded for long"),
    ],
)
async def test_ollama_misbehaves(
    pieces: tuple[bytes | Break, ...],
    code: str,
    text: str,
    tries: int,
    upstream: ReplayServer,
    tmp_path: Path,
) -> None:
    async with before(upstream, tmp_path) as (parley, proxy), proxy.running():
        well = upstream.answers["/api/chat"]
        upstream.answers["/api/chat"] = pieces
        said = await say(parley)
        assert (said.code, said.text, said.stored) == (code, text, True)
        assert (upstream.paths().count("/api/chat"), len(said.retrying)) == (tries, tries - 1)
        upstream.answers["/api/chat"] = well
        assert (await say(parley)).text == "Hello there"


# --- models


def _truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _corrupt(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        pytest.param(_truncate, "MODEL_LOAD_FAILED", id="weights truncated"),
        pytest.param(_corrupt, "MODEL_LOAD_FAILED", id="weights corrupt"),
        pytest.param(_remove("tokenizer.json"), "MODEL_LOAD_FAILED", id="tokenizer missing"),
        pytest.param(_remove("model.safetensors"), "MODEL_LOAD_FAILED", id="weights missing"),
        pytest.param(_remove("config.json"), "MODEL_LOAD_FAILED", id="config missing"),
        pytest.param(shutil.rmtree, "MODEL_NOT_FOUND", id="all of it missing"),
    ],
)
async def test_a_models_files_are_damaged(
    break_it: Callable[[Path], None], code: str, tmp_path: Path
) -> None:
    """H4: it says what is wrong, harms nobody else, and is well again when its files are."""
    models = tmp_path / "models"
    fox = await asyncio.to_thread(write_reciter, models / "fox", "Run!")
    hare = await asyncio.to_thread(write_reciter, models / "hare", "Run!")
    whole = tmp_path / "whole"
    await asyncio.to_thread(shutil.copytree, fox, whole)
    break_it(fox)
    async with serving(tmp_path, HUGGINGFACE_MODELS_PATH=str(models)) as parley:
        said = await say(parley, "hf:fox")
        assert (said.code, said.stored) == (code, code == "MODEL_LOAD_FAILED"), said
        assert "fox" in said.message
        assert str(tmp_path) not in said.message
        assert (await say(parley, f"hf:{hare.name}")).text == "Run!"
        await asyncio.to_thread(shutil.rmtree, fox, ignore_errors=True)
        await asyncio.to_thread(shutil.copytree, whole, fox)
        assert (await say(parley, "hf:fox")).text == "Run!"


@pytest.mark.parametrize("name", ["../secret", "/etc", "fox/../../secret", "..", "a\0b"])
async def test_a_name_cannot_leave_the_models_path(name: str, parley: Parley) -> None:
    said = await say(parley, f"hf:{name}")
    assert (said.code, said.stored) == ("MODEL_NOT_FOUND", False)


async def test_a_models_path_that_cannot_be_used_is_logged_and_the_default_taken(tmp_path: Path) -> None:
    """M3."""
    file = tmp_path / "file"
    file.touch()
    async with serving(tmp_path, HUGGINGFACE_MODELS_PATH=str(file)) as parley:
        assert f"HUGGINGFACE_MODELS_PATH {file} cannot be used" in await parley.logged()
        assert (tmp_path / "models/huggingface").is_dir()


# --- Postgres


@contextmanager
def gone(parley: Parley) -> Iterator[None]:
    """Postgres is killed, and nobody can start it again for as long as this lasts."""
    home = parley.data_dir / "postgres"
    with (home / "start.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kill_postgres(home)
        yield


async def is_ready(parley: Parley) -> bool:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{parley.url}/health/ready")).status_code == 200


async def begun(parley: Parley, script: str) -> asyncio.Task[Said]:
    """A reply that has said something, and is read to its end."""
    started = asyncio.Event()

    async def read() -> Said:
        client = GraphQLClient(f"{parley.url}/graphql", patience_seconds=120)
        async with client.socket() as socket:
            operation = await socket.subscribe(SEND, message="Hi", model=f"scripted:{script}")
            events = await operation.until("TextDelta")
            started.set()
            return _ended(events + await operation.rest())

    reading = asyncio.create_task(read())
    await started.wait()
    return reading


def words(count: int) -> str:
    return " ".join(f"w{number}" for number in range(1, count + 1))


@pytest.mark.parametrize("seconds", [1, 60])
async def test_postgres_is_gone(seconds: int, tmp_path: Path) -> None:
    """Nothing that was sent is lost; what cannot be stored is refused and says so."""
    async with serving(tmp_path) as parley:
        reading = await begun(parley, "words 100 every 20ms")
        with gone(parley):
            assert not await is_ready(parley)
            refused = asyncio.create_task(say(parley, "scripted:words 3"))
            await asyncio.sleep(seconds)  # the fault's duration is what this is about
            said = await refused if seconds > 30 else None
        if said is not None:
            assert (said.code, said.stored) == ("DATABASE_UNAVAILABLE", False)
        assert (await reading).text == words(100)
        await eventually(lambda: is_ready(parley))
        assert (await say(parley, "scripted:words 3")).text == "w1 w2 w3"
        assert "Traceback" not in await parley.logged()


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[None]:
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(path)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:  # noqa: S607
        pytest.skip("needs the right to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)  # noqa: S607


async def test_the_disk_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 160):
        async with serving(tmp_path / "disk") as parley:
            reading = await begun(parley, "words 200 every 20ms")
            filler = tmp_path / "disk/filler"
            fill(filler)
            saying = asyncio.create_task(say(parley, "scripted:words 3"))
            await asyncio.sleep(3)  # the fault's duration
            assert not reading.done()
            filler.unlink()
            assert (await reading).text == words(200)
            said = await saying
            assert (said.code, said.stored, said.text) in (
                ("DATABASE_UNAVAILABLE", False, ""),  # no room for the message
                (None, True, "w1 w2 w3"),  # room for the message, and for the reply once it was made
            )
            assert (await say(parley, "scripted:words 3")).text == "w1 w2 w3"


def fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 65536):
                pass
        except OSError:
            pass


# --- messages


@pytest.mark.parametrize(
    ("message", "complaint"),
    [("", "message is empty"), ("\0\0 \n", "message is empty"), ("x" * 2**20, "1048576 characters")],
)
async def test_a_message_that_cannot_be_sent(message: str, complaint: str, parley: Parley) -> None:
    said = await say(parley, "scripted:echo", message)
    assert (said.code, said.stored) == ("BAD_INPUT", False)
    assert complaint in said.message


async def test_a_message_with_nuls_is_cleaned(parley: Parley) -> None:
    assert (await say(parley, "scripted:echo", "a\0b c\0")).text == "ab c"


async def test_a_long_message_is_taken_whole(parley: Parley) -> None:
    message = "word " * 79_999 + "end"
    assert message in (await say(parley, "scripted:history", message)).text
