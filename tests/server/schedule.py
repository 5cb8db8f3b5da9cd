"""What happens to one viewer's messages on two replicas, caused for real, and audited step by step."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import groupby
from uuid import UUID, uuid4

import asyncpg
import pytest

from db.database import Conflict, Database, DatabaseUnavailable, Record
from db.generation_log import LogRow
from providers.base import Finished, FinishReason, ProviderEvent
from providers.errors import Unavailable
from server.draft import Draft
from server.errors import ChatError, ErrorCode
from server.events import ReasoningDelta, TextDelta
from server.log_rows import to_events
from server.purge import Purge
from tests.server.audit import Audit, Sent, text_of
from tests.server.replica import LEASE_SECONDS, Client, Clock, LinkState, Replica, Upstream, numbers

_PATIENCE_SECONDS = 30.0
_RETENTION_SECONDS = 86_400.0
BEYOND = 10_000  # no log here is as long


class World:
    """Two replicas on one database, and a clerk who sees what is really stored."""

    def __init__(self, url: str, database: Database, clerk: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.upstream = Upstream()
        self.clock = Clock()
        self.clerk = clerk
        self.replicas: list[Replica] = []
        self._url = url
        self._database = database

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncGenerator["World"]:
        clerk = await asyncpg.connect(url)
        try:
            async with Database.open(url) as database:
                world = cls(url, database, clerk)
                world.replicas = [await world.new() for _ in range(2)]
                yield world
                for replica in world.replicas:
                    await replica.die()
        finally:
            await clerk.close()

    async def new(self) -> Replica:
        return await Replica(self._url, self._database, self.upstream, self.clock).start()


class Schedule:
    """``side`` is 0 or 1 and names a replica, or its successor."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._viewer = f"viewer {next(numbers)}"
        self._sent: list[Sent] = []
        self._clients: list[Client] = []
        self._stops: list[tuple[Replica, asyncio.Task[None]]] = []
        self._audit = Audit()

    def new_message(self, *, keyed: bool) -> Sent:
        number = next(numbers)
        key = f"key {number}" if keyed else None
        sent = Sent(Draft(f"message {number}", model=f"scripted:text {number}", client_key=key))
        self._sent.append(sent)
        return sent

    @property
    def messages(self) -> int:
        return len(self._sent)

    # What users do

    async def send(self, side: int, sent: Sent) -> None:
        replica = self._world.replicas[side]
        sent.may_interrupt |= replica.link.state is not LinkState.UP
        try:
            generation = await replica.engine.send(self._viewer, sent.draft)
        except DatabaseUnavailable:
            sent.may_interrupt = True
        except Conflict:
            assert sent.draft.conversation_id is not None
        else:
            assert sent.generation_id in (None, generation.id), "one key, two generations"
            sent.generation_id = generation.id

    async def send_after(self, side: int, before: Sent, sent: Sent) -> None:
        """In the same conversation."""
        conversation_id = await self._world.clerk.fetchval(
            "SELECT conversation_id FROM generations WHERE id = $1", before.generation_id
        )
        sent.draft = replace(sent.draft, conversation_id=conversation_id)
        await self.send(side, sent)

    async def send_ten_times(self, sides: tuple[int, int], sent: Sent) -> None:
        await asyncio.gather(*(self.send(side, sent) for _ in range(5) for side in sides))

    async def send_another_with_the_same_key(self, side: int, sent: Sent) -> None:
        if sent.draft.client_key is None or sent.generation_id is None:
            return
        other = replace(sent.draft, text="something else")
        with suppress(DatabaseUnavailable):
            with pytest.raises(ChatError) as refused:
                await self._world.replicas[side].engine.send(self._viewer, other)
            assert refused.value.code is ErrorCode.CLIENT_KEY_REUSED

    async def subscribe(self, side: int, sent: Sent, after: int, *, is_slow: bool) -> Client:
        """One that never connects, where nothing is known to be sent."""
        client = Client(sent.generation_id, after, is_slow=is_slow)
        if client.generation_id is not None:
            self._clients.append(client)
            client.connect(self._world.replicas[side])
        return client

    async def take_one(self, client: Client) -> None:
        client.take()

    async def reconnect(self, side: int, client: Client) -> None:
        await client.drop()
        if client.generation_id is not None and not client.has_ended:
            client.connect(self._world.replicas[side])

    async def stop(self, side: int, sent: Sent) -> None:
        if sent.generation_id is not None:
            sent.is_stopped = True
            replica = self._world.replicas[side]
            self._stops.append((replica, asyncio.create_task(self._stop(replica, sent.generation_id))))

    async def _stop(self, replica: Replica, generation_id: UUID) -> None:
        with suppress(DatabaseUnavailable):
            stopped = await replica.engine.stop(self._viewer, generation_id)
            assert stopped.finished_at is not None

    # What the upstream does

    def say(self, sent: Sent, event: ProviderEvent) -> None:
        if not sent.is_over:
            sent.say(event)
            self._world.upstream.say(sent.model, event)

    def say_in_any(self, number: int, event: ProviderEvent) -> None:
        if self._sent:
            self.say(self._sent[number % len(self._sent)], event)

    async def finish_or_cut(self, sent: Sent, *, is_cut: bool) -> None:
        if not is_cut:
            self.say(sent, Finished(FinishReason.STOP))
        elif not sent.is_over:
            sent.is_cut = True
            self._world.upstream.say(sent.model, Unavailable("the connection was cut"))

    # What processes and the database do

    async def end_process(self, side: int, *, is_asked: bool) -> None:
        """Another one takes its place."""
        self._disturb()
        replica = self._world.replicas[side]
        if is_asked:
            replica.link.state = LinkState.UP
            await replica.drain()
        else:
            await replica.die()
        for client in self._clients:
            if client.is_at(replica):
                await client.drop()
        stops = [task for where, task in self._stops if where is replica]
        for task in stops:
            task.cancel()
        await asyncio.gather(*stops, return_exceptions=True)
        self._stops = [(where, task) for where, task in self._stops if where is not replica]
        self._world.replicas[side] = await self._world.new()

    async def set_link(self, side: int, state: LinkState) -> None:
        self._world.replicas[side].link.state = state
        if state is not LinkState.UP:
            self._disturb()

    async def kill_connections(self, *names: str) -> None:
        self._disturb()
        await self._world.clerk.execute(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = ANY($1::text[])
            """,
            names,
        )

    async def pass_time(self, seconds: float) -> None:
        self._disturb()
        self._world.clock.now += seconds
        await self._world.clerk.execute(
            """
            WITH running AS (
                SELECT id FROM generations WHERE viewer_id = $1 AND finished_at IS NULL
                ORDER BY id FOR NO KEY UPDATE  -- as everybody locks several of them
            )
            UPDATE generations g SET lease_until = lease_until - make_interval(secs => $2)
            FROM running WHERE g.id = running.id
            """,
            self._viewer,
            seconds,
        )

    async def keep_leases(self, side: int) -> None:
        await self._world.replicas[side].leases.once()

    async def lose_lease(self, sent: Sent) -> None:
        """To a process that dies before it does anything with it."""
        sent.may_interrupt = True
        stolen = await self._world.clerk.fetchval(
            "UPDATE generations SET owner = $2 WHERE id = $1 AND finished_at IS NULL RETURNING id",
            sent.generation_id,
            uuid4(),
        )
        if stolen and stolen not in self._audit.fences:
            statement = "SELECT max(seq) FROM generation_events WHERE generation_id = $1"
            self._audit.fences[stolen] = await self._world.clerk.fetchval(statement, stolen)

    async def purge(self, side: int) -> None:
        """What has ended by now."""
        due = await self._world.clerk.fetch(
            """
            UPDATE generations SET finished_at = finished_at - make_interval(secs => $2)
            WHERE viewer_id = $1 AND finished_at IS NOT NULL AND purged_at IS NULL RETURNING id
            """,
            self._viewer,
            2 * _RETENTION_SECONDS,
        )
        await self.look()
        self._audit.purged |= {row["id"] for row in due}
        with suppress(DatabaseUnavailable):
            await Purge(self._world.replicas[side].link, retention_seconds=_RETENTION_SECONDS).once()

    def _disturb(self) -> None:
        for sent in self._sent:
            sent.may_interrupt = True

    # What must hold

    async def look(self) -> None:
        """All that was shown before now is stored, and what it says."""
        shown = [(client, len(client.seen)) for client in self._clients]
        rows = await self._world.clerk.fetch(
            """
            SELECT e.generation_id, e.seq, e.event::text AS event
            FROM generation_events e JOIN generations g ON g.id = e.generation_id
            WHERE g.viewer_id = $1 ORDER BY e.generation_id, e.seq
            """,
            self._viewer,
        )
        log = to_events(LogRow(**dict(row)) for row in rows)
        for generation_id, events in groupby(log, lambda event: event.generation_id):
            self._audit.check_log(generation_id, list(events))
        for client, number in shown:
            assert client.generation_id is not None
            self._audit.check_seen(client.generation_id, client.start, client.seen[:number])

    async def end(self) -> None:
        """Everything is driven to its end, and everybody sees it."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._end_all()
                await self.look()
                for sent in self._sent:
                    await self._check_end(sent)
        except TimeoutError:
            raise AssertionError(f"waits for ever; running: {await self._running()}") from None
        finally:
            for client in self._clients:
                await client.drop()
            for sent in self._sent:
                self._world.upstream.forget(sent.model)

    async def _end_all(self) -> None:
        for sent in self._sent:
            await self.finish_or_cut(sent, is_cut=False)
        for replica in self._world.replicas:
            replica.link.state = LinkState.UP
        while any(replica.writes for replica in self._world.replicas):
            await self.look()
        while await self._running():
            await self.pass_time(1.1 * LEASE_SECONDS)
            await self.keep_leases(0)
        for client in self._clients:
            await client.rest()
        for _, task in self._stops:
            await task
        await self._read_all()
        await self.purge(1)
        await self._read_all()

    async def _running(self) -> list[Record]:
        return await self._world.clerk.fetch(
            "SELECT * FROM generations WHERE viewer_id = $1 AND finished_at IS NULL", self._viewer
        )

    async def _read_all(self) -> None:
        """On both sides, from the beginning, from the middle, and from beyond the end."""
        late = [
            await self.subscribe(side, sent, after, is_slow=False)
            for sent in self._sent
            for side, after in ((0, 0), (1, 0), (0, 3), (1, BEYOND))
        ]
        for client in late:
            await client.rest()

    async def _check_end(self, sent: Sent) -> None:
        ended = await self._world.clerk.fetch(
            """
            SELECT g.id, g.status, m.status AS message_status, m.content, m.reasoning,
                   (SELECT count(*) FROM model_usage_stats u WHERE u.generation_id = g.id) AS usages,
                   (SELECT count(*) FROM generation_attempts a WHERE a.generation_id = g.id) AS attempts,
                   (SELECT count(*) FROM messages WHERE viewer_id = $1 AND content = $3) AS questions
            FROM generations g JOIN messages m ON m.id = g.message_id
            WHERE g.viewer_id = $1 AND g.model = $2
            """,
            self._viewer,
            sent.draft.model,
            sent.draft.text,
        )
        assert len(ended) <= 1, "one message, two generations"
        if not ended:
            assert sent.generation_id is None
            return
        row = ended[0]
        assert sent.generation_id in (None, row["id"])
        assert (row["usages"], row["attempts"], row["questions"]) == (1, 1, 1)
        log = self._audit.stored[row["id"]]
        end = log[max(log)]
        assert row["content"] == text_of(log.values(), TextDelta)
        assert (row["reasoning"] or "") == text_of(log.values(), ReasoningDelta)
        assert row["status"] == row["message_status"] == sent.check(log.values(), end)
        for client in self._clients:
            if client.generation_id == row["id"] and client.is_connected:
                assert client.seen[-1].event == end, "a reader that stayed was not told"
