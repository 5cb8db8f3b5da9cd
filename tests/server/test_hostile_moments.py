"""Ends that come at a bad moment, or with a bad text: every reply has one, and no other reply notices."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from uuid import uuid4

import pytest

from db import generations
from db.bell import Bell
from db.database import Connection, Database
from providers.base import ChatRequest, Phase, PhaseChanged, ProviderEvent, TextDelta
from providers.errors import Unavailable
from providers.registry import Registration, Registry
from providers.router import Route, Router
from providers.scripted import Scripted
from server import events
from server.chat import ChatEngine
from server.draft import Draft
from server.errors import ChatError, ErrorCode
from server.events import Failed
from server.leases import Leases
from server.stream_log import LogTiming, StreamLog
from tests.server.begin import VIEWER
from tests.server.replica import Link, LinkState
from tests.server.test_chat import PATIENT, House

HASTY = LogTiming(flush_seconds=0.005, lease_seconds=0.4, poll_seconds=0.05, retry_seconds=0.02)


class Says(Scripted):
    """Says this, and then fails or falls silent."""

    def __init__(self, said: Sequence[ProviderEvent], failure: Unavailable | None = None) -> None:
        super().__init__(PATIENT)
        self._said = said
        self._failure = failure

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        for event in self._said:
            yield event
        if self._failure:
            raise self._failure
        await asyncio.Event().wait()


@pytest.mark.parametrize("hostile", ["\0", "\ud800"], ids=["NUL", "lone surrogate"])
async def test_an_error_that_postgres_cannot_hold(hostile: str, database: Database, bell: Bell) -> None:
    house = House(
        database, bell, provider=Says([TextDelta("half")], Unavailable(f"upstream said {hostile}!"))
    )
    async with house.log.running(), house.engine.running(grace_seconds=0):
        generation = await house.send("words 1")
        end = (await house.events(generation))[-1].event
        assert isinstance(end, Failed)
        assert end.code == ErrorCode.PROVIDER_UNAVAILABLE
        assert (await house.reply(generation)).content == "half"


@pytest.mark.parametrize("hostile", ["\0", "\ud800"], ids=["NUL", "lone surrogate"])
async def test_a_phase_that_postgres_cannot_hold_ends_nobodys_stream(
    hostile: str, database: Database, bell: Bell
) -> None:
    house = House(
        database, bell, provider=Says([PhaseChanged(Phase.LOADING_MODEL, f"a{hostile}"), TextDelta("on")])
    )
    async with house.log.running(), house.engine.running(grace_seconds=0):
        generation = await house.send("words 1")
        assert await house.until_text(generation) == "on"
        await house.engine.stop(VIEWER, generation.id)
        details = [event.event for event in await house.events(generation)]
    (phase,) = (one for one in details if isinstance(one, events.PhaseChanged))
    assert phase.detail in ("a", "a�")


@pytest.mark.parametrize("hostile", ["\0", "\ud800"], ids=["NUL", "lone surrogate"])
async def test_a_models_name_that_postgres_cannot_hold(hostile: str, database: Database, bell: Bell) -> None:
    house = House(database, bell)
    async with house.log.running(), house.engine.running(grace_seconds=0):
        reply = await house.say(f"text a{hostile}b")
    assert reply.content in ("ab", "a�b")


async def test_a_lease_that_is_lost_while_the_model_is_silent(database: Database, bell: Bell) -> None:
    """As when this process was frozen: another has closed the reply, and this one has nothing to commit."""
    house = House(database, bell, HASTY)
    async with house.log.running(), house.engine.running(grace_seconds=0):
        generation = await house.send("text so;stall")
        await house.until_text(generation)
        await database.execute(
            "UPDATE generations SET owner = $2, lease_until = now() - interval '1 hour' WHERE id = $1",
            generation.id,
            uuid4(),
        )
        reaper = Leases(database, bell, uuid4(), lease_seconds=60, running=tuple, stop=lambda _: None)
        await reaper.close_abandoned()
        end = (await house.events(generation))[-1].event
        assert isinstance(end, Failed)
        assert end.outcome == "interrupted"
    assert house.scripted.open_streams == 0


async def test_an_end_that_is_held_up_holds_up_nobody_else(database: Database, bell: Bell) -> None:
    house = House(database, bell)
    async with house.log.running(), house.engine.running(grace_seconds=0):
        stuck, other = await house.send("text a;stall"), await house.send("words 1000000 every 5ms")
        await house.until_text(stuck)
        async with database.transaction() as connection:
            await connection.execute(
                "SELECT FROM conversations WHERE id = $1 FOR UPDATE", stuck.conversation_id
            )
            stopping = asyncio.create_task(house.engine.stop(VIEWER, stuck.id))
            async with asyncio.timeout(10), aclosing(house.log.read(other.id, after=1)) as live:
                for _ in range(20):
                    await anext(live)
            assert not stopping.done()
        assert (await stopping).status == "stopped"


class SlowCommit(Database):
    """Its first commit returns only when it is let."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._pool, database._limits)
        self.committed = asyncio.Event()
        self.may_return = asyncio.Event()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        first = not self.committed.is_set()
        async with super().transaction() as connection:
            yield connection
        if first:
            self.committed.set()
            await self.may_return.wait()


async def test_a_message_that_is_stored_while_the_server_drains_has_an_end(
    database: Database, bell: Bell
) -> None:
    slow = SlowCommit(database)
    house = House(slow, bell)
    async with house.log.running():
        async with house.engine.running(grace_seconds=0):
            sending = asyncio.create_task(house.send("text a;stall"))
            await slow.committed.wait()
            asyncio.get_running_loop().call_later(0.1, slow.may_return.set)
        generation = await sending
        found = await generations.get(database, VIEWER, generation.id)
    assert found is not None
    assert found.status == "interrupted"


class SlowRouter(Router):
    """Finds the model only when it is let."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry, default_provider="scripted")
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def resolve(self, name: str | None, *, is_open: bool = False) -> Route:
        self.asked.set()
        await self.may_answer.wait()
        return await super().resolve(name, is_open=is_open)


async def test_a_message_whose_model_is_found_too_late_is_refused(database: Database, bell: Bell) -> None:
    router = SlowRouter(Registry([Registration(Scripted(PATIENT), "scripted")]))
    async with StreamLog(database, bell, uuid4()).running() as log:
        engine = ChatEngine(database, router, log)
        async with engine.running(grace_seconds=0):
            sending = asyncio.create_task(engine.send(VIEWER, Draft("hello", model="scripted:words 1")))
            await router.asked.wait()
        router.may_answer.set()
        with pytest.raises(ChatError) as refused:
            await sending
    assert refused.value.code is ErrorCode.OVERLOADED
    assert await database.fetch("SELECT FROM generations") == []


class Closing(Scripted):
    """Its upstream takes a moment to be closed."""

    def __init__(self) -> None:
        super().__init__(PATIENT)
        self.is_closing = asyncio.Event()
        self.may_close = asyncio.Event()
        self.is_closed = False

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        try:
            yield TextDelta("half")
            await asyncio.Event().wait()
        finally:
            self.is_closing.set()
            await self.may_close.wait()
            self.is_closed = True


async def test_a_second_stop_does_not_cut_short_what_the_first_one_closes(
    database: Database, bell: Bell
) -> None:
    closing = Closing()
    house = House(database, bell, provider=closing)
    async with house.log.running(), house.engine.running(grace_seconds=0):
        generation = await house.send("words 1")
        await house.until_text(generation)
        stops = [asyncio.create_task(house.engine.stop(VIEWER, generation.id))]
        await closing.is_closing.wait()
        stops.append(asyncio.create_task(house.engine.stop(VIEWER, generation.id)))
        await asyncio.sleep(0)
        closing.may_close.set()
        await asyncio.gather(*stops)
    assert closing.is_closed


async def test_stop_stops_while_the_database_is_away(database: Database, bell: Bell) -> None:
    """C7: what was said is stored when it is back."""
    link, upstream = Link(database), Closing()
    house = House(link, bell, provider=upstream)
    async with house.log.running(), house.engine.running(grace_seconds=0):
        generation = await house.send("words 1")
        await house.until_text(generation)
        link.state = LinkState.AWAY
        stopping = asyncio.create_task(house.engine.stop(VIEWER, generation.id))
        async with asyncio.timeout(5):
            await upstream.is_closing.wait()
        upstream.may_close.set()
        link.state = LinkState.UP
        assert (await stopping).status == "stopped"
    assert (await house.reply(generation)).content == "half"


async def test_a_stranger_cannot_stop_a_reply(database: Database, bell: Bell) -> None:
    house = House(database, bell)
    async with house.log.running(), house.engine.running(grace_seconds=0):
        generation = await house.send("text so;stall")
        await house.until_text(generation)
        with pytest.raises(ChatError, match="no generation"):
            await house.engine.stop("somebody else", generation.id)
        assert house.scripted.open_streams == 1


async def test_what_the_database_never_takes_fails_the_reply_at_once(database: Database, bell: Bell) -> None:
    """C8: with the text before it, and without waiting for a lease to run out."""
    await database.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF new.event->>'text' = 'bad' THEN RAISE EXCEPTION 'never'; END IF; RETURN new; END $$
        """
    )
    await database.execute(
        """
        CREATE TRIGGER refuse BEFORE INSERT ON generation_events FOR EACH ROW EXECUTE FUNCTION refuse()
        """
    )
    house = House(database, bell)
    async with house.log.running(), house.engine.running(grace_seconds=0):
        generation = await house.send("text good;wait 1ms;text bad;stall")
        seen = await house.events(generation)
    end = seen[-1].event
    assert isinstance(end, Failed)
    assert (end.outcome, end.code) == ("failed", "INTERNAL")
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    reply = await house.reply(generation)
    assert (reply.status, reply.content, reply.error_code) == ("failed", "good", "INTERNAL")
    assert house.scripted.open_streams == 0
