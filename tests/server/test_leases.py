"""Leases: kept while their process lives, and what is abandoned closed once, by whoever is in contact."""

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import pytest

from db import generation_log
from db.bell import Bell
from db.database import Database, Record
from db.generation_log import LogRow
from server.events import Failed, TextDelta
from server.leases import Leases
from server.log_rows import encode, to_events
from tests.server.begin import begin
from tests.server.replica import Clock, Link, LinkState

_LEASE_SECONDS = 10.0


class Kept:
    """One process's leases, and whom they stopped."""

    def __init__(self, database: Database, bell: Bell, clock: Clock, running: Sequence[UUID] = ()) -> None:
        self.owner = uuid4()
        self.link = Link(database)
        self.running = list(running)
        self.stopped: list[UUID] = []
        self._clock = clock
        self.leases = Leases(
            self.link,
            bell,
            self.owner,
            lease_seconds=_LEASE_SECONDS,
            running=lambda: self.running,
            stop=self.stopped.append,
            clock=clock,
        )

    async def pass_(self, seconds: float) -> None:
        self._clock.now += seconds
        await self.leases.once()


@pytest.fixture
def kept(database: Database, bell: Bell) -> Kept:
    return Kept(database, bell, Clock())


async def abandoned(database: Database, owner: UUID | None = None) -> UUID:
    """A generation whose lease has run out."""
    generation, _ = await begin(database, owner or uuid4(), lease_seconds=-1)
    return generation.id


async def state(database: Database, generation_id: UUID) -> Record:
    row = await database.fetchrow(
        """
        SELECT status, lease_until > now() AS is_leased, owner,
               (SELECT count(*) FROM model_usage_stats WHERE generation_id = g.id) AS usages
        FROM generations g WHERE id = $1
        """,
        generation_id,
    )
    assert row is not None
    return row


async def kinds(database: Database, generation_id: UUID) -> list[str]:
    rows = await generation_log.events(database, generation_id, 0, 100)
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    return [type(event.event).__name__ for event in to_events(rows)]


async def test_what_runs_keeps_its_lease_even_when_it_had_run_out(database: Database, kept: Kept) -> None:
    """As after a pause of the whole process, if nobody else was quicker."""
    generation_id = await abandoned(database, kept.owner)
    kept.running.append(generation_id)
    for _ in range(3):
        await kept.pass_(_LEASE_SECONDS)
    row = await state(database, generation_id)
    assert (row["status"], row["is_leased"], row["owner"]) == ("queued", True, kept.owner)
    assert kept.stopped == []


async def test_what_another_one_has_is_stopped(database: Database, kept: Kept) -> None:
    generation_id = await abandoned(database)
    kept.running.append(generation_id)
    await kept.leases.once()
    assert kept.stopped == [generation_id]


async def test_nobody_is_judged_before_a_lease_of_contact(database: Database, kept: Kept) -> None:
    generation_id = await abandoned(database)
    for seconds in (0, 0.4 * _LEASE_SECONDS, 0.5 * _LEASE_SECONDS):
        await kept.pass_(seconds)
        assert (await state(database, generation_id))["status"] == "queued"
    await kept.pass_(0.1 * _LEASE_SECONDS)
    assert (await state(database, generation_id))["status"] == "interrupted"


@pytest.mark.parametrize("away", [LinkState.AWAY, LinkState.DEAF])
async def test_contact_that_was_lost_begins_anew(database: Database, kept: Kept, away: LinkState) -> None:
    await kept.pass_(0)
    await kept.pass_(2 * _LEASE_SECONDS)
    kept.link.state = away
    await kept.pass_(2 * _LEASE_SECONDS)
    kept.link.state = LinkState.UP
    generation_id = await abandoned(database)
    await kept.pass_(2 * _LEASE_SECONDS)
    await kept.pass_(0.9 * _LEASE_SECONDS)
    assert (await state(database, generation_id))["status"] == "queued"
    await kept.pass_(0.1 * _LEASE_SECONDS)
    assert (await state(database, generation_id))["status"] == "interrupted"


async def test_of_many_that_judge_at_once_each_generation_is_closed_by_one(
    database: Database, bell: Bell
) -> None:
    ids = [await abandoned(database) for _ in range(20)]
    judges = [Kept(database, bell, Clock()).leases for _ in range(5)]
    await asyncio.gather(*(judge.close_abandoned() for judge in judges))
    for generation_id in ids:
        row = await state(database, generation_id)
        assert (row["status"], row["usages"]) == ("interrupted", 1)
        assert await kinds(database, generation_id) == ["Started", "Failed"]


async def test_a_late_owner_that_writes_as_it_is_judged_leaves_a_log_with_an_end(
    database: Database, kept: Kept
) -> None:
    """It was paused for longer than its lease: its row comes before the end, or not at all."""
    for turn in range(200):
        late = uuid4()
        generation_id = await abandoned(database, late)
        accepted, _ = await asyncio.gather(
            _append(database, late, generation_id, turns=turn % 40), kept.leases.close_abandoned()
        )
        await kept.leases.close_abandoned()  # where it was being written to, and was passed over
        said = ["TextDelta"] if accepted else []
        assert await kinds(database, generation_id) == ["Started", *said, "Failed"]


async def _append(database: Database, owner: UUID, generation_id: UUID, *, turns: int) -> bool:
    for _ in range(turns):
        await asyncio.sleep(0)
    row = LogRow(generation_id, 2, encode(TextDelta("late")))
    return bool(await generation_log.append(database, owner, [row], {}))


async def test_one_that_cannot_be_closed_does_not_hold_up_the_others(
    database: Database, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [await abandoned(database) for _ in range(5)]
    await database.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF new.seq > 1 THEN RAISE EXCEPTION 'refused'; END IF; RETURN new; END $$
        """
    )
    await database.execute(
        f"""
        CREATE TRIGGER refuse BEFORE INSERT ON generation_events FOR EACH ROW
        WHEN (new.generation_id = '{ids[2]}') EXECUTE FUNCTION refuse()
        """
    )
    await kept.leases.close_abandoned()
    statuses = [(await state(database, generation_id))["status"] for generation_id in ids]
    assert statuses == ["interrupted", "interrupted", "queued", "interrupted", "interrupted"]
    assert f"{ids[2]} could not be closed" in caplog.text
    await database.execute("DROP TRIGGER refuse ON generation_events")
    await database.execute(
        "UPDATE generations SET lease_until = now() - interval '1 s' WHERE id = $1", ids[2]
    )
    await kept.leases.close_abandoned()
    assert (await state(database, ids[2]))["status"] == "interrupted"


async def test_the_end_says_that_it_may_be_tried_again(database: Database, kept: Kept) -> None:
    generation_id = await abandoned(database)
    await kept.leases.close_abandoned()
    *_, last = to_events(await generation_log.events(database, generation_id, 0, 100))
    assert isinstance(last.event, Failed)
    assert (last.event.outcome, last.event.code, last.event.retryable) == ("interrupted", "INTERRUPTED", True)


def leases_that_tell(database: Database, bell: Bell, *times: float) -> Leases:
    """A process whose clock shows these times, one after the other."""
    shown = iter(times)
    return Leases(
        database,
        bell,
        uuid4(),
        lease_seconds=_LEASE_SECONDS,
        running=tuple,
        stop=lambda _: None,
        clock=lambda: next(shown),
    )


async def test_closing_many_leaves_time_for_our_own(database: Database, bell: Bell) -> None:
    """What others abandoned is closed bit by bit, for a quarter of a lease at a time."""
    for _ in range(50):
        await abandoned(database)
    await leases_that_tell(database, bell, 0, 0, _LEASE_SECONDS).close_abandoned()
    left = "SELECT count(*) FROM generations WHERE finished_at IS NULL"
    assert 0 < await database.fetchval(left) < 50
    await leases_that_tell(database, bell, *[0.0] * 9).close_abandoned()
    assert await database.fetchval(left) == 0


async def test_nobody_is_judged_by_a_time_that_was_long_in_coming(database: Database, bell: Bell) -> None:
    """The renewals of those who live may be waiting behind it."""
    generation_id = await abandoned(database)
    await leases_that_tell(database, bell, 0, 0.3 * _LEASE_SECONDS).close_abandoned()
    assert (await state(database, generation_id))["status"] == "queued"


async def test_a_writer_that_lost_its_lease_does_not_pass_for_the_closer(
    database: Database, kept: Kept
) -> None:
    """Of the same process: what it stored between the claim and the end would take the end's number."""
    generation_id = await abandoned(database)
    await kept.leases.close_abandoned()
    row = await state(database, generation_id)
    assert (row["status"], row["owner"] == kept.owner) == ("interrupted", False)
    late = LogRow(generation_id, 2, encode(TextDelta("late")))
    assert await generation_log.append(database, kept.owner, [late], {}) == set()
