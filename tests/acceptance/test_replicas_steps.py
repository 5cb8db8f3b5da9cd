"""Two hundred things at random happen to two servers, to their clients and to their database."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from db.bell import APPLICATION_NAME
from db.database import Database, DatabaseUnavailable
from tests.acceptance.audit import audited
from tests.acceptance.reading import SEND_OR_RESUME, WATCH, WAYS, Lost, Reading, losses
from tests.acceptance.replicas import Replica, replicas
from tests.graphql_client import Failed, GraphQLClient, Json, Refused

STEPS = 200
STOP = "mutation ($id: ID!) { stopGeneration(id: $id) { status } }"
SCRIPTS = (
    "words 50 every 20ms",
    "words 300 every 10ms",
    "words 100000 every 20ms",
    "load 300ms;reason Hmm;words 40 every 30ms",
    "words 10;stall",
    "words 20 every 10ms;cut",
)
ENDLESS = ("words 100000 every 20ms", "stall")
PAUSE_SECONDS = 0.1  # at most, from one step to the next
END_SECONDS = 40.0  # a lease, another one for whoever closes what was abandoned, and room
REFUSALS = {"DATABASE_UNAVAILABLE", "OVERLOADED"}


@dataclass
class Sent:
    """A message, and what everybody saw of its reply."""

    input: Json
    readings: list[Reading] = field(default_factory=list)
    whole: Reading = field(default_factory=Reading)

    @property
    def is_known(self) -> bool:
        """Whether anybody has seen anything of its reply."""
        return any(reading.seen for reading in self.readings)

    @property
    def reply(self) -> str:
        """The generation's id."""
        return next(id_ for reading in self.readings if (id_ := reading.generation_id))

    @property
    def is_endless(self) -> bool:
        return bool(self.input["model"].endswith(ENDLESS))

    @property
    def reached(self) -> int:
        return max((reading.reached for reading in self.readings), default=0)


class Chaos:
    def __init__(self, fleet: Sequence[Replica], database: Database, chance: random.Random) -> None:
        self.sent: list[Sent] = []
        self._fleet = fleet
        self._database = database
        self._chance = chance
        self._tasks = asyncio.TaskGroup()
        self._reading: set[asyncio.Task[bool]] = set()
        self._restarting: set[asyncio.Task[None]] = set()
        self._steps: dict[Callable[[], Awaitable[None]], int] = {
            self._send: 25,
            self._read: 30,
            self._drop: 20,
            self._stop: 8,
            self._kill_replica: 4,
            self._kill_backend: 8,
            self._kill_bell: 5,
        }

    async def run(self, steps: int) -> None:
        """That many steps; then everything is left alone until every reply has ended."""
        async with self._tasks:
            for _ in range(steps):
                (step,) = self._chance.choices(list(self._steps), list(self._steps.values()))
                await step()
                await asyncio.sleep(self._chance.uniform(0, PAUSE_SECONDS))
            if self._restarting:
                await asyncio.wait(self._restarting)
            async with asyncio.timeout(END_SECONDS), asyncio.TaskGroup() as ending:
                for sent in self.sent:
                    ending.create_task(self._end(sent))

    # --- the steps

    async def _send(self) -> None:
        number = len(self.sent)
        model = f"scripted:{self._chance.choice(SCRIPTS)}"
        self.sent.append(Sent({"message": f"message {number}", "model": model, "clientKey": f"key {number}"}))
        self._read_on(self.sent[-1], 0)

    async def _read(self) -> None:
        """From any number on that somebody has reached; from 0 on it is sent again."""
        if self.sent:
            sent = self._chance.choice(self.sent)
            self._read_on(sent, self._chance.randint(0, sent.reached))

    async def _drop(self) -> None:
        if self._reading:
            self._chance.choice(list(self._reading)).cancel()

    async def _stop(self) -> None:
        if known := [sent for sent in self.sent if sent.is_known]:
            self._tasks.create_task(self._ask_to_stop(self._chance.choice(known).reply))

    async def _kill_replica(self) -> None:
        if all(replica.is_running for replica in self._fleet):
            task = self._tasks.create_task(_killed_and_started(self._chance.choice(self._fleet)))
            self._restarting.add(task)
            task.add_done_callback(self._restarting.discard)

    async def _kill_backend(self) -> None:
        await self._terminate("parley")

    async def _kill_bell(self) -> None:
        await self._terminate(APPLICATION_NAME)

    # --- what they are made of

    def _read_on(self, sent: Sent, after: int) -> None:
        reading = Reading(after)
        sent.readings.append(reading)
        task = self._tasks.create_task(self._try_to_read(sent, reading))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _try_to_read(self, sent: Sent, reading: Reading, most: int | None = None) -> bool:
        """False when it was lost, or refused at the start; to be refused later is a fault."""
        way, client = self._chance.choice(WAYS), self._client()
        if sent.is_known and self._chance.random() < 0.5:
            events = way(client, WATCH, id=sent.reply, after=reading.after)
        else:
            events = way(client, SEND_OR_RESUME, input=sent.input, after=reading.after)
        try:
            await reading.read(events, most)
        except Lost:
            return False
        except (Refused, Failed) as refused:
            if refused.code not in REFUSALS or reading.seen:
                raise
            return False
        return True

    async def _ask_to_stop(self, reply: str) -> bool:
        """Whether it was answered, which is when the reply has ended."""
        try:
            with losses():
                stopped = await self._client().ask(STOP, id=reply)
        except Lost:
            return False
        except Failed as refused:
            if refused.code not in REFUSALS:
                raise
            return False
        assert stopped["status"] in ("COMPLETED", "STOPPED", "FAILED", "INTERRUPTED")
        return True

    async def _terminate(self, name: str) -> None:
        """End one of the connections of this name in Postgres. A server that starts needs its own."""
        if self._restarting:
            return
        with suppress(DatabaseUnavailable):  # the one that asks may have been hit the last time
            await self._database.execute(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = $1 AND pid <> pg_backend_pid()
                ORDER BY random() LIMIT 1
                """,
                name,
            )

    async def _end(self, sent: Sent) -> None:
        """Read it whole; what would not end by itself is stopped first."""
        await _succeeding(lambda: self._begin_to_read(sent))
        if sent.is_endless:
            await _succeeding(lambda: self._ask_to_stop(sent.reply))
        await _succeeding(lambda: self._read_whole(sent))

    async def _begin_to_read(self, sent: Sent) -> bool:
        sent.readings.append(Reading())
        return await self._try_to_read(sent, sent.readings[-1], most=1)

    async def _read_whole(self, sent: Sent) -> bool:
        sent.whole = Reading()
        return await self._try_to_read(sent, sent.whole)

    def _client(self) -> GraphQLClient:
        running = [replica for replica in self._fleet if replica.is_running]
        return self._chance.choice(running).client


async def _succeeding(attempt: Callable[[], Awaitable[bool]]) -> None:
    while not await attempt():  # noqa: ASYNC110 - what is awaited rings no bell
        await asyncio.sleep(PAUSE_SECONDS)  # as a client does before it tries again


async def _killed_and_started(replica: Replica) -> None:
    await replica.kill()
    await replica.start()


async def test_two_hundred_steps(database_url: str, database: Database, tmp_path: Path) -> None:
    """C7 C8 D2."""
    async with replicas(tmp_path, database_url) as fleet:
        chaos = Chaos(fleet, database, random.Random(4))  # noqa: S311 - any seed will do
        await chaos.run(STEPS)
    stored = await audited(database)
    assert sorted(one.asked for one in stored.values()) == sorted(one.input["message"] for one in chaos.sent)
    for sent in chaos.sent:
        stored[sent.reply].check_followed([sent.whole])
        for reading in sent.readings:
            stored[sent.reply].check_reading(reading)
    assert {one.status for one in stored.values()} == {"completed", "stopped", "failed", "interrupted"}
