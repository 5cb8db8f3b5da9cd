"""The pool: statements, transactions, what becomes of errors, and how it outlives Postgres."""

import asyncio
import inspect
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest

from db.database import (
    Conflict,
    Database,
    DatabaseError,
    DatabaseMisconfigured,
    DatabaseUnavailable,
    InvalidData,
    PoolLimits,
    StatementFailed,
    translated,
)
from tests.conftest import url_of
from tests.db.processes import answers, eventually, kill_postgres


@pytest.fixture
async def numbers(database: Database) -> Database:
    """A database with a table of numbers, each allowed once."""
    await database.execute("CREATE TABLE numbers (number integer PRIMARY KEY CHECK (number >= 0))")
    return database


async def test_statements(numbers: Database) -> None:
    assert await numbers.execute("INSERT INTO numbers SELECT generate_series(1, $1::int)", 3) == "INSERT 0 3"
    rows = await numbers.fetch("SELECT number FROM numbers ORDER BY number")
    assert [row["number"] for row in rows] == [1, 2, 3]
    row = await numbers.fetchrow("SELECT max(number) AS largest FROM numbers")
    assert row is not None
    assert row["largest"] == 3
    assert await numbers.fetchrow("SELECT FROM numbers WHERE number = 4") is None
    assert await numbers.fetchval("SELECT count(*) FROM numbers") == 3
    await numbers.ping()


async def test_a_transaction_is_all_or_nothing(numbers: Database) -> None:
    async def insert(*values: int) -> None:
        async with numbers.transaction() as connection:
            for value in values:
                await connection.execute("INSERT INTO numbers VALUES ($1)", value)

    await insert(1, 2)
    with pytest.raises(Conflict):
        await insert(3, 1)
    assert await numbers.fetchval("SELECT array_agg(number ORDER BY number) FROM numbers") == [1, 2]


@pytest.mark.parametrize(
    "value", [{"a": [1, 2.5, None, True], "ü": {"": "\n\"'"}}, [], "text", 7, None, "\U0001f600"], ids=repr
)
async def test_json_comes_back_as_plain_python(database: Database, value: object) -> None:
    assert await database.fetchval("SELECT jsonb_build_array($1::jsonb)", value) == [value]


async def test_json_is_json_to_postgres(database: Database) -> None:
    assert await database.fetchval("SELECT $1::jsonb ->> 'text'", {"text": "déjà"}) == "déjà"


# What becomes of errors


_DRIVER_ERRORS = [
    value
    for _, value in inspect.getmembers(asyncpg.exceptions, inspect.isclass)
    if issubclass(value, Exception) and not issubclass(value, Warning)
]


@pytest.mark.parametrize("driver_error", [*_DRIVER_ERRORS, OSError, ConnectionResetError, TimeoutError])
def test_no_error_of_the_driver_gets_out(driver_error: type[Exception]) -> None:
    with pytest.raises(DatabaseError) as raised, translated():
        raise driver_error("what happened")
    assert raised.type is not DatabaseError
    assert isinstance(raised.value.__cause__, driver_error)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (asyncpg.PostgresConnectionError, DatabaseUnavailable),
        (asyncpg.InsufficientResourcesError, DatabaseUnavailable),
        (asyncpg.OperatorInterventionError, DatabaseUnavailable),
        (asyncpg.PostgresIOError, DatabaseUnavailable),
        (asyncpg.InvalidAuthorizationSpecificationError, DatabaseMisconfigured),
        (asyncpg.InvalidCatalogNameError, DatabaseMisconfigured),
        (asyncpg.UniqueViolationError, Conflict),
        (asyncpg.ExclusionViolationError, Conflict),
        (asyncpg.SerializationError, Conflict),
        (asyncpg.DeadlockDetectedError, Conflict),
        (asyncpg.LockNotAvailableError, Conflict),
        (asyncpg.NotNullViolationError, InvalidData),
        (asyncpg.exceptions.DataError, InvalidData),
        (asyncpg.UndefinedTableError, StatementFailed),
        (asyncpg.PostgresSyntaxError, StatementFailed),
        (asyncpg.InternalServerError, StatementFailed),
    ],
)
def test_families_of_errors_stay_together(
    base: type[asyncpg.PostgresError], expected: type[DatabaseError]
) -> None:
    for driver_error in _DRIVER_ERRORS:
        if issubclass(driver_error, base):
            with pytest.raises(expected), translated():
                raise driver_error("what happened")


@pytest.mark.parametrize(
    ("statement", "arguments", "expected", "sqlstate"),
    [
        ("INSERT INTO numbers VALUES (1), (1)", (), Conflict, "23505"),
        ("INSERT INTO numbers VALUES (-1)", (), InvalidData, "23514"),
        ("INSERT INTO numbers VALUES (NULL)", (), InvalidData, "23502"),
        ("SELECT $1::text::int", ("one",), InvalidData, "22P02"),
        ("SELECT $1::text", ("a\0b",), InvalidData, "22021"),
        ("SELECT $1::int", (2**40,), InvalidData, "22000"),
        ("SELECT $1::uuid", ("no uuid",), InvalidData, "22000"),
        ("SELEKT", (), StatementFailed, "42601"),
        ("SELECT * FROM nowhere", (), StatementFailed, "42P01"),
        ("ALTER SYSTEM SET work_mem = '1MB'", (), DatabaseMisconfigured, "42501"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", (), DatabaseUnavailable, "08003"),
    ],
)
async def test_errors_of_statements(
    numbers: Database,
    statement: str,
    arguments: tuple[object, ...],
    expected: type[DatabaseError],
    sqlstate: str | None,
) -> None:
    with pytest.raises(expected) as raised:
        await numbers.execute(statement, *arguments)
    assert raised.value.sqlstate == sqlstate
    assert str(raised.value)
    await numbers.ping()


async def test_a_deadlock_is_a_conflict_for_one_of_the_two(numbers: Database) -> None:
    await numbers.execute("INSERT INTO numbers VALUES (1), (2)")
    both_hold_one = asyncio.Barrier(2)

    async def lock(first: int, second: int) -> None:
        async with numbers.transaction() as connection:
            await connection.execute("SELECT FROM numbers WHERE number = $1 FOR UPDATE", first)
            await both_hold_one.wait()
            await connection.execute("SELECT FROM numbers WHERE number = $1 FOR UPDATE", second)

    outcomes = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict", "NoneType"]


async def test_a_constraint_that_fails_at_commit(numbers: Database) -> None:
    await numbers.execute("CREATE TABLE uses (number int REFERENCES numbers DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(InvalidData):
        async with numbers.transaction() as connection:
            await connection.execute("INSERT INTO uses VALUES (9)")


async def test_a_statement_that_takes_too_long(database_url: str) -> None:
    async with Database.open(database_url, PoolLimits(statement_timeout_seconds=0.1)) as database:
        with pytest.raises(DatabaseUnavailable, match="in time"):
            await database.execute("SELECT pg_sleep(60)")
        await database.ping()


async def test_no_connection_is_free_in_time(database_url: str) -> None:
    limits = PoolLimits(max_size=1, acquire_timeout_seconds=0.1)
    async with Database.open(database_url, limits) as database:
        async with database.transaction():
            with pytest.raises(DatabaseUnavailable, match="in time"):
                await database.ping()
        await database.ping()


async def test_postgres_has_no_connection_left(own_postgres: str) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(9):
            await stack.enter_async_context(Database.open(own_postgres, PoolLimits(10, 10)))
        with pytest.raises(DatabaseUnavailable) as raised:
            await stack.enter_async_context(Database.open(own_postgres, PoolLimits(10, 10)))
    assert raised.value.sqlstate == "53300"


async def test_a_wrong_password(postgres: str) -> None:
    with pytest.raises(DatabaseMisconfigured):
        async with Database.open(postgres.replace("@", "x@")):
            pass


async def test_a_database_that_is_not_there(postgres: str) -> None:
    with pytest.raises(DatabaseMisconfigured):
        async with Database.open(url_of(postgres, "nowhere")):
            pass


@pytest.mark.parametrize("url", ["mysql://localhost/x", "postgresql://h:port/x?sslmode=perhaps"])
async def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(DatabaseMisconfigured):
        async with Database.open(url):
            pass


async def test_nobody_listens(tmp_path: Path) -> None:
    url = f"postgresql://parley@/parley?host={quote(str(tmp_path))}"
    with pytest.raises(DatabaseUnavailable):
        async with Database.open(url):
            pass


# Outliving things


async def test_postgres_is_killed_and_comes_back(own_postgres: str, home: Path) -> None:
    async with Database.open(own_postgres, PoolLimits(4, 4)) as database:
        await database.execute("CREATE TABLE kept (number int)")
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO kept VALUES (1)")

        async def write_until_it_fails() -> None:
            while True:
                await database.execute("INSERT INTO kept VALUES (0)")

        writers = [asyncio.create_task(write_until_it_fails()) for _ in range(4)]
        kill_postgres(home)
        for outcome in await asyncio.gather(*writers, return_exceptions=True):
            assert isinstance(outcome, DatabaseUnavailable)
        await eventually(lambda: answers(database.ping))
        assert await database.fetchval("SELECT number FROM kept WHERE number = 1") == 1
        await _assert_every_connection_works(database, 4)


async def test_postgres_ends_all_connections(database: Database) -> None:
    await _assert_every_connection_works(database, 10)
    with pytest.raises(DatabaseUnavailable):
        async with database.transaction() as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            )
    await eventually(lambda: answers(database.ping))
    await _assert_every_connection_works(database, 10)


async def test_cancelling_a_caller_costs_no_connection(database_url: str) -> None:
    async with Database.open(database_url, PoolLimits(max_size=3)) as database:
        for turns in range(80):
            callers = [asyncio.create_task(_sleep_in_transaction(database, 0.05)) for _ in range(4)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for caller in callers:
                caller.cancel()
            for outcome in await asyncio.gather(*callers, return_exceptions=True):
                assert isinstance(outcome, asyncio.CancelledError)
        await _assert_every_connection_works(database, 3)


async def test_cancelling_ends_the_statement_in_postgres(database: Database) -> None:
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(%' AND state = 'active'"
    running += " AND datname = current_database() AND pid <> pg_backend_pid()"

    async def is_running() -> bool:
        return bool(await database.fetchval(running))

    async def is_over() -> bool:
        return not await is_running()

    caller = asyncio.create_task(_sleep_in_transaction(database))
    await eventually(is_running)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await eventually(is_over)


async def test_closing_waits_for_nobody_for_ever(database_url: str) -> None:
    limits = PoolLimits(acquire_timeout_seconds=0.2)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database.open(database_url, limits))
        caller = asyncio.create_task(_sleep_in_transaction(database))
        await eventually(lambda: _is_asleep(database))
    with pytest.raises(DatabaseUnavailable):
        await caller


async def _is_asleep(database: Database) -> bool:
    statement = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    return bool(await database.fetchval(f"{statement} AND datname = current_database()"))


async def _sleep_in_transaction(database: Database, seconds: float = 60.0) -> None:
    async with database.transaction() as connection:
        await connection.execute("SELECT pg_sleep($1)", seconds)


async def _assert_every_connection_works(database: Database, count: int) -> None:
    all_inside = asyncio.Barrier(count)

    async def use() -> None:
        async with database.transaction() as connection:
            await connection.fetchval("SELECT 1")
            await all_inside.wait()

    await asyncio.gather(*(use() for _ in range(count)))
