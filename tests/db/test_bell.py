"""The bell: what is heard of transactions, and how it outlives its connection, Postgres and the network."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from itertools import count, takewhile
from pathlib import Path

import pytest

from db.bell import APPLICATION_NAME, Bell, BellLimits, Channel, ring
from db.database import Database
from tests.db.processes import answers, eventually, kill_postgres
from tests.db.proxy import PostgresProxy

_PATIENCE_SECONDS = 20.0
_IMPATIENT = BellLimits(
    connect_timeout_seconds=0.5,
    check_every_seconds=0.05,
    check_timeout_seconds=0.5,
    first_delay_seconds=0.01,
    longest_delay_seconds=0.05,
)


@pytest.fixture(autouse=True)
async def nothing_left(database: Database) -> AsyncGenerator[None]:
    """No task and no connection is there after the test that was not there before."""
    before = asyncio.all_tasks()
    yield
    assert not asyncio.all_tasks() - before - {asyncio.current_task()}
    await eventually(lambda: _has_backends(database, 0))


@asynccontextmanager
async def _listening(url: str, limits: BellLimits | None = None) -> AsyncGenerator[Bell]:
    """A bell that is connected."""
    async with Bell.listening(url, limits) as bell:
        for channel in Channel:
            await _next(bell, channel, 0)
        yield bell


async def _next(bell: Bell, channel: Channel, heard: int) -> int:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        return await bell.wait(channel, heard, at_most_seconds=3600)


async def _ring(database: Database, channel: Channel) -> None:
    async with database.transaction() as connection:
        await ring(connection, channel)


async def _has_backends(database: Database, number: int) -> bool:
    statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    return bool(await database.fetchval(f"{statement} AND application_name = $1", APPLICATION_NAME) == number)


async def _terminate_backend(database: Database) -> None:
    statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    ended = await database.fetch(f"{statement} AND application_name = $1", APPLICATION_NAME)
    assert len(ended) == 1


async def _has_logged(caplog: pytest.LogCaptureFixture, *levels: str) -> bool:
    return [record.levelname for record in caplog.records if record.name == "db.bell"] == [*levels]


# What is heard


async def test_a_new_connection_counts_as_a_ring_of_every_channel(database_url: str) -> None:
    async with _listening(database_url) as bell:
        assert [bell.rings(channel) for channel in Channel] == [1, 1, 1]


async def test_everybody_hears_a_ring_once_it_is_committed(database: Database, database_url: str) -> None:
    async with _listening(database_url) as one, _listening(database_url) as other:
        async with database.transaction() as connection:
            await ring(connection, Channel.LOG)
            await ring(connection, Channel.LOG)
            await _ring(database, Channel.STOP)
            for bell in (one, other):
                assert await _next(bell, Channel.STOP, 1) == 2
                assert bell.rings(Channel.LOG) == 1
        for bell in (one, other):
            assert await _next(bell, Channel.LOG, 1) == 2
        await _ring(database, Channel.STOP)
        for bell in (one, other):
            assert await _next(bell, Channel.STOP, 2) == 3
            assert [bell.rings(channel) for channel in Channel] == [2, 3, 1]


async def test_a_ring_that_is_rolled_back_is_not_heard(database: Database, database_url: str) -> None:
    async with _listening(database_url) as bell:
        with suppress(ZeroDivisionError):
            async with database.transaction() as connection:
                await ring(connection, Channel.LOG)
                raise ZeroDivisionError
        await _ring(database, Channel.STOP)
        await _next(bell, Channel.STOP, 1)
        assert bell.rings(Channel.LOG) == 1


async def test_no_ring_is_lost_among_many(database: Database, database_url: str) -> None:
    """Readers who look at the table only when it rang see every number that was put there."""
    await database.execute("CREATE TABLE numbers (number int)")

    async def write(numbers: range) -> None:
        for number in numbers:
            async with database.transaction() as connection:
                await connection.execute("INSERT INTO numbers VALUES ($1)", number)
                await ring(connection, Channel.LOG)

    async def read(bell: Bell) -> None:
        heard = bell.rings(Channel.LOG)
        while await database.fetchval("SELECT count(*) FROM numbers") < 200:
            heard = await _next(bell, Channel.LOG, heard)

    async with (
        _listening(database_url) as one,
        _listening(database_url) as other,
        asyncio.TaskGroup() as tasks,
    ):
        for bell in (one, other, one, other):
            tasks.create_task(read(bell))
        for start in range(0, 200, 50):
            tasks.create_task(write(range(start, start + 50)))


# Those who wait


async def test_many_wait_and_one_leaves(database: Database, database_url: str) -> None:
    async with _listening(database_url) as bell:
        waiting = [asyncio.create_task(_next(bell, Channel.LOG, 1)) for _ in range(100)]
        elsewhere = asyncio.create_task(_next(bell, Channel.CONVERSATIONS, 1))
        await asyncio.sleep(0)
        waiting[0].cancel()
        await _ring(database, Channel.LOG)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert outcomes[1:] == [2] * 99
        assert not elsewhere.done()
        await _ring(database, Channel.CONVERSATIONS)
        assert await elsewhere == 2


async def test_a_ring_before_the_wait_ends_it_at_once(database: Database, database_url: str) -> None:
    async with _listening(database_url) as bell:
        heard = bell.rings(Channel.LOG)
        await _ring(database, Channel.LOG)
        rings = await _next(bell, Channel.LOG, heard)
        assert await bell.wait(Channel.LOG, heard, at_most_seconds=0) == rings


async def test_a_wait_ends_with_its_time(database_url: str) -> None:
    async with _listening(database_url) as bell:
        assert await bell.wait(Channel.LOG, 1, at_most_seconds=0.01) == 1


# Outliving things


async def test_its_backend_is_terminated(
    database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "db.bell")
    async with _listening(database_url, _IMPATIENT) as bell:
        waiting = [asyncio.create_task(_next(bell, channel, 1)) for channel in Channel]
        await _terminate_backend(database)
        assert await asyncio.gather(*waiting) == [2, 2, 2]
        assert await _has_backends(database, 1)
        await _ring(database, Channel.STOP)
        assert await _next(bell, Channel.STOP, 2) == 3
        await eventually(lambda: _has_logged(caplog, "WARNING", "INFO"))
        await _terminate_backend(database)
        await eventually(lambda: _has_logged(caplog, "WARNING", "INFO", "WARNING", "INFO"))


async def test_a_terminated_backend_does_not_wait_for_the_next_check(
    database: Database, database_url: str
) -> None:
    async with _listening(database_url, BellLimits(check_every_seconds=3600)) as bell:
        await _terminate_backend(database)
        assert await _next(bell, Channel.LOG, 1) == 2


async def test_postgres_is_killed_and_comes_back(own_postgres: str, home: Path) -> None:
    async with _listening(own_postgres, _IMPATIENT) as bell, Database.open(own_postgres) as database:
        kill_postgres(home)
        rings = await _next(bell, Channel.LOG, 1)
        await eventually(lambda: answers(database.ping))
        await _ring(database, Channel.LOG)
        await _next(bell, Channel.LOG, rings)


async def test_a_network_that_swallows_everything(database: Database, database_url: str) -> None:
    async with PostgresProxy(database_url).running() as proxy, _listening(proxy.url, _IMPATIENT) as bell:
        proxy.is_swallowing = True
        await _ring(database, Channel.LOG)
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await proxy.reached(connections=5)  # the first, the driver's request to cancel, three attempts
        assert bell.rings(Channel.LOG) == 1
        proxy.is_swallowing = False
        rings = await _next(bell, Channel.LOG, 1)
        await _ring(database, Channel.LOG)
        await _next(bell, Channel.LOG, rings)


async def test_a_connection_that_is_cut_at_any_byte(
    database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "db.bell")
    proxy = PostgresProxy(database_url)
    limits = BellLimits(first_delay_seconds=0.001, longest_delay_seconds=0.001)
    async with proxy.running(), Bell.listening(proxy.url, limits) as bell:
        proxy.cuts = takewhile(lambda _: bell.rings(Channel.LOG) == 0, count(step=7))
        rings = await _next(bell, Channel.LOG, 0)
        assert proxy.connections > 100
        await _ring(database, Channel.LOG)
        await _next(bell, Channel.LOG, rings)
        assert await _has_logged(caplog, "WARNING")


async def test_nobody_answers_at_the_start(
    database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "db.bell")
    proxy = PostgresProxy(database_url)
    async with Bell.listening(proxy.url, _IMPATIENT) as bell:
        await eventually(lambda: _has_logged(caplog, "WARNING"))
        assert await bell.wait(Channel.LOG, 0, at_most_seconds=0.2) == 0
        assert await _has_logged(caplog, "WARNING")
        async with proxy.running():
            rings = await _next(bell, Channel.LOG, 0)
            await _ring(database, Channel.LOG)
            await _next(bell, Channel.LOG, rings)
            await eventually(lambda: _has_logged(caplog, "WARNING", "INFO"))


@pytest.mark.parametrize("wrong", ["postgresql://parley:secret@[/x", "mysql://parley:secret@localhost/x"])
async def test_a_url_that_is_none(wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    async with Bell.listening(wrong, _IMPATIENT) as bell:
        await eventually(lambda: _has_logged(caplog, "WARNING"))
        assert await bell.wait(Channel.LOG, 0, at_most_seconds=0.2) == 0
    assert await _has_logged(caplog, "WARNING")
    assert "secret" not in caplog.text


# Leaving


async def test_leaving_while_it_connects(black_hole: str) -> None:
    url = black_hole.replace("http://", "postgresql://parley@")
    async with asyncio.timeout(2):
        async with Bell.listening(url, BellLimits(connect_timeout_seconds=3600)) as bell:
            assert await bell.wait(Channel.LOG, 0, at_most_seconds=0.05) == 0


async def test_leaving_while_a_check_has_no_answer(database_url: str) -> None:
    limits = BellLimits(check_every_seconds=0.01, check_timeout_seconds=3600)
    async with (
        asyncio.timeout(_PATIENCE_SECONDS),
        PostgresProxy(database_url).running() as proxy,
        _listening(proxy.url, limits) as bell,
    ):
        proxy.is_swallowing = True
        assert await bell.wait(Channel.LOG, 1, at_most_seconds=0.1) == 1


@pytest.mark.parametrize("through_proxy", [False, True])
async def test_being_cancelled_at_any_moment(database_url: str, through_proxy: bool) -> None:
    async with PostgresProxy(database_url).running() as proxy:
        url = proxy.url if through_proxy else database_url
        for step in range(80):
            with pytest.raises(TimeoutError):
                async with (
                    asyncio.timeout(step / 4000),
                    Bell.listening(url, BellLimits(check_every_seconds=0)) as bell,
                ):
                    await _next(bell, Channel.LOG, await _next(bell, Channel.LOG, 0))
