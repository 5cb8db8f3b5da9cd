"""Two servers on one database: how the replies of the one end for those who watch at the other.

| the server that writes is | its replies                         | who watches at the other sees           |
| ------------------------- | ----------------------------------- | --------------------------------------- |
| killed with -9            | INTERRUPTED, with all that was      | GenerationFailed INTERRUPTED, 10 s      |
|                           | shown and, but for its last 250 ms, | after the end of its lease at the       |
|                           | all that came from upstream         | latest                                  |
| told to end by SIGTERM    | COMPLETED when they end within the  | the rest, and that end                  |
|                           | grace time, else INTERRUPTED        |                                         |
| well, and a client of the | STOPPED, with the text so far; the  | GenerationStopped                       |
| other stops the reply     | connection upstream is closed       |                                         |
"""

import asyncio
from pathlib import Path

from db.database import Database
from tests.acceptance.audit import audited
from tests.acceptance.follower import Follower, begin
from tests.acceptance.replicas import replicas
from tests.acceptance.talker import MODEL, talker

ENDLESS = "scripted:words 100000 every 20ms"
WITHIN_GRACE = "scripted:words 100 every 20ms"
LEASE_SECONDS = 10.0
UNSTORED_SECONDS = 0.25
STOP = "mutation ($id: ID!) { stopGeneration(id: $id) { status } }"


def words(count: int) -> str:
    return " ".join(f"w{number}" for number in range(1, count + 1))


async def test_killed(database_url: str, database: Database, tmp_path: Path) -> None:
    """C7 C8 D2."""
    clock = asyncio.get_running_loop().time
    async with (
        talker() as ollama,
        replicas(tmp_path, database_url, OLLAMA_ENABLED="true", OLLAMA_HOST=ollama.url) as (doomed, other),
    ):
        replies = [await begin(doomed, model) for model in (ENDLESS, MODEL)]
        followers = [Follower(at, reply) for reply in replies for at in ([doomed, other], [other], [other])]
        async with asyncio.TaskGroup() as reading:
            for follower in followers:
                reading.create_task(follower.follow())
            for follower in followers:
                await follower.pieces[0].saw(20)
            shown = followers[0].pieces[0]
            await shown.saw(len(shown.seen) + 1)  # so that it is killed right after it has shown something
            killed_at = clock()
            await doomed.kill()
        ended_after = clock() - killed_at
        upstream = ollama.sent_until(killed_at - UNSTORED_SECONDS)
    stored = await audited(database)
    for follower in followers:
        assert follower.end["error"] == {"code": "INTERRUPTED", "retryable": True}
        stored[follower.generation_id].check_followed(follower.pieces)
    assert len(upstream) > 0
    assert stored[replies[1]].content.startswith(upstream)
    assert ended_after < LEASE_SECONDS + 10


async def test_started_anew_one_after_the_other(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    async with replicas(tmp_path, database_url) as fleet, asyncio.TaskGroup() as reading:
        followers: list[Follower] = []

        async def follow(model: str, writer: int) -> None:
            reply = await begin(fleet[writer], model)
            for first in (0, 1):
                follower = Follower((fleet[first], fleet[1 - first]), reply)
                reading.create_task(follower.follow())
                followers.append(follower)
                await follower.pieces[0].saw(2)

        await follow(ENDLESS, 0)
        await follow(ENDLESS, 1)
        for number, replica in enumerate(fleet):
            await follow(WITHIN_GRACE, number)
            await replica.stop()
            await replica.start()
    stored = await audited(database)
    for follower in followers:
        stored[follower.generation_id].check_followed(follower.pieces)
    assert sorted(one.status for one in stored.values()) == ["completed"] * 2 + ["interrupted"] * 2
    assert [one.content for one in stored.values() if one.status == "completed"] == [words(100)] * 2


async def test_stopped_from_the_other(database_url: str, database: Database, tmp_path: Path) -> None:
    """In every phase."""
    scripts = ("queue 60s", "load 60s", "wait 60s", "words 100000 every 5ms", "words 3;stall")
    async with (
        talker() as ollama,
        replicas(tmp_path, database_url, OLLAMA_ENABLED="true", OLLAMA_HOST=ollama.url) as (writer, other),
    ):
        replies = [await begin(writer, model) for model in (MODEL, *(f"scripted:{s}" for s in scripts))]
        followers = [Follower([at], reply) for reply in replies for at in (writer, other)]
        async with asyncio.TaskGroup() as reading:
            for follower in followers:
                reading.create_task(follower.follow())
                await follower.pieces[0].saw(2)
            stopped = await asyncio.gather(*(other.client.ask(STOP, id=reply) for reply in replies))
        await ollama.hung_up.wait()
    assert stopped == [{"status": "STOPPED"}] * len(replies)
    stored = await audited(database)
    for follower in followers:
        assert follower.end["__typename"] == "GenerationStopped"
        stored[follower.generation_id].check_followed(follower.pieces)
