"""The pool of connections to Postgres, and the one place where the driver's errors become ours."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import asyncpg
import msgspec
from asyncpg.exceptions import (
    ClientConfigurationError,
    InternalClientError,
    UnsupportedClientFeatureError,
    UnsupportedServerFeatureError,
)

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# DatabaseError
# ├── DatabaseUnavailable    Postgres cannot serve now: gone, starting, full, or too busy to answer in time
# ├── DatabaseMisconfigured  the URL, the login or the rights are wrong, until somebody changes them
# ├── Conflict               somebody else was there first
# ├── InvalidData            a value that its column, or a constraint, does not take
# └── StatementFailed        the statement does not fit the schema or the server


class DatabaseError(Exception):
    """Everything that ``db`` raises about Postgres; ``sqlstate`` is Postgres' own code, where it gave one."""

    sqlstate: str | None = None


class DatabaseUnavailable(DatabaseError):
    """Postgres cannot serve now. Whether a commit that was under way took place is not known."""


class DatabaseMisconfigured(DatabaseError):
    """The URL, the login, the database's name or its rights are wrong: trying again changes nothing."""


class Conflict(DatabaseError):
    """Another transaction was there first, or what is asked for is at odds with what is stored."""


class InvalidData(DatabaseError):
    """A value that its column, or a constraint on it, does not take."""


class StatementFailed(DatabaseError):
    """The statement does not fit the schema or the server: a fault of ours, or a migration is missing."""


# https://www.postgresql.org/docs/current/errcodes-appendix.html: the code itself, else its class (the first
# two characters), else StatementFailed.
_BY_SQLSTATE: dict[str, type[DatabaseError]] = {
    "08": DatabaseUnavailable,  # connection exception
    "0P": DatabaseMisconfigured,  # invalid role
    "22": InvalidData,  # data exception
    "23": InvalidData,  # integrity constraint violation
    "23505": Conflict,  # unique_violation
    "23P01": Conflict,  # exclusion_violation
    "25006": DatabaseUnavailable,  # read_only_sql_transaction: a standby answers
    "25P03": DatabaseUnavailable,  # idle_in_transaction_session_timeout
    "25P04": DatabaseUnavailable,  # transaction_timeout
    "28": DatabaseMisconfigured,  # invalid authorization
    "3D": DatabaseMisconfigured,  # no such database
    "40": Conflict,  # serialization failure, deadlock
    "40003": DatabaseUnavailable,  # statement_completion_unknown
    "42501": DatabaseMisconfigured,  # insufficient_privilege
    "44": InvalidData,  # WITH CHECK OPTION violation
    "53": DatabaseUnavailable,  # disk full, out of memory, too many connections
    "55006": Conflict,  # object_in_use
    "55P03": Conflict,  # lock_not_available
    "57": DatabaseUnavailable,  # shutting down, crashed, starting, statement cancelled
    "58": DatabaseUnavailable,  # input/output error
    "F0": DatabaseUnavailable,  # configuration or lock file broken
}

Record = asyncpg.Record
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"  # generic for the type checker only


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """``acquire_timeout_seconds`` covers the wait for a free connection as well as opening one."""

    min_size: int = 1
    max_size: int = 10
    acquire_timeout_seconds: float = 5.0
    statement_timeout_seconds: float = 30.0


class Database:
    """Connections to one database. A connection that broke is replaced when it is next asked for, so that
    everything works again as soon as Postgres does. All methods raise ``DatabaseError``."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", limits: PoolLimits) -> None:
        self._pool = pool
        self._limits = limits

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, limits: PoolLimits | None = None) -> AsyncGenerator[Self]:
        """Connect ``min_size`` times to ``postgres[ql]://``; on leaving, give those who still hold a
        connection the acquire time-out to hand it back."""
        limits = limits or PoolLimits()
        with connecting():
            pool = await asyncpg.create_pool(
                url,
                min_size=limits.min_size,
                max_size=limits.max_size,
                timeout=limits.acquire_timeout_seconds,
                command_timeout=limits.statement_timeout_seconds,
                init=_set_codecs,
                reset=_leave_session,
                server_settings={"application_name": "parley"},
            )
        try:
            yield cls(pool, limits)
        finally:
            with suppress(DatabaseUnavailable), translated():
                async with asyncio.timeout(limits.acquire_timeout_seconds):
                    await pool.close()  # terminates what is left when it is cancelled

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """BEGIN to COMMIT, or to ROLLBACK on an exception. The body runs statements and waits for nothing
        else: it holds a connection, and an ``OSError`` in it counts as the database's."""
        with translated():
            async with self._acquire() as connection, connection.transaction():
                yield connection

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        with translated():
            async with self._acquire() as connection:
                return await connection.fetch(sql, *args)

    async def fetchrow(self, sql: str, *args: object) -> Record | None:
        with translated():
            async with self._acquire() as connection:
                return await connection.fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: object) -> Any:
        """The first column of the first row; None where there is no row."""
        with translated():
            async with self._acquire() as connection:
                return await connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: object) -> str:
        """Run one statement; its command tag, such as ``UPDATE 1``."""
        with translated():
            async with self._acquire() as connection:
                return await connection.execute(sql, *args)

    async def ping(self) -> None:
        """One round trip."""
        await self.fetchval("SELECT 1")

    def _acquire(self) -> "asyncpg.pool.PoolAcquireContext[asyncpg.Record]":
        return self._pool.acquire(timeout=self._limits.acquire_timeout_seconds)


async def _set_codecs(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: _JSONB_VERSION + msgspec.json.encode(value),
        decoder=lambda data: msgspec.json.decode(data[len(_JSONB_VERSION) :]),
        format="binary",
    )


async def _leave_session(_: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Nothing here changes more of a session than its transaction, which the driver ends: its own reset would
    be one more round trip after every statement."""


_JSONB_VERSION = b"\x01"  # what jsonb_send and jsonb_recv put before the text


@contextmanager
def translated() -> Iterator[None]:
    """What the driver raises in this block, or the socket below it, leaves it as a ``DatabaseError``."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, InternalClientError, OSError) as error:
        raise _translation(error) from error


@contextmanager
def connecting() -> Iterator[None]:
    """The same around a first connection, where there may be something wrong with the URL too."""
    try:
        with translated():
            yield
    except ValueError:
        # The driver's words quote the URL, and with it pieces of its password.
        raise DatabaseMisconfigured(
            "the database's URL cannot be understood; it is postgresql://user:password@host:5432/database, "
            "with / ? # @ in the password written as %2F %3F %23 %40"
        ) from None


def _translation(error: Exception) -> DatabaseError:
    match error:
        case asyncpg.PostgresError():
            sqlstate: str = error.sqlstate or "XX000"
            kind = _BY_SQLSTATE.get(sqlstate) or _BY_SQLSTATE.get(sqlstate[:2], StatementFailed)
            translated = kind(str(error))
            translated.sqlstate = sqlstate
            return translated
        case TimeoutError():
            return DatabaseUnavailable("Postgres did not answer in time")
        case OSError():
            return DatabaseUnavailable(f"cannot reach Postgres: {error}")
        case ClientConfigurationError():
            return DatabaseMisconfigured(str(error))
        case UnsupportedClientFeatureError() | UnsupportedServerFeatureError():
            return StatementFailed(str(error))
        case _:  # the pool or the connection is closed, or was lost at a moment that confused the driver
            return DatabaseUnavailable(str(error))
