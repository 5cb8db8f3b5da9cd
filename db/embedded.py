"""A private Postgres in the data directory, shared by all servers that use this directory."""

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from db.cluster import Cluster
from db.database import Database, DatabaseError, DatabaseUnavailable, PoolLimits

_POLL_SECONDS = 0.02
_RETRY_SECONDS = 1.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EmbeddedOptions:
    """``durable`` False gives up safety for speed: for tests only."""

    durable: bool = True
    start_timeout_seconds: float = 60.0
    stop_timeout_seconds: float = 30.0
    watch_interval_seconds: float = 0.25


@asynccontextmanager
async def embedded_postgres(home: Path, options: EmbeddedOptions | None = None) -> AsyncGenerator[str]:
    """The URL, password included, of the Postgres in ``home``. It is started if it does not run, started
    again should it end, and stopped by the last who leaves. Raises ``DatabaseError``.

    Three locked files decide who does what. The kernel drops a lock when its process ends, however it ends,
    so none is ever stale:

    - ``start.lock``: held by whoever is starting, joining, leaving or stopping.
    - ``holders.lock``: shared by all who are inside. Who can have it alone when leaving was the last.
    - ``running.lock``: inherited by every process of Postgres, so that it is free only when none is left.
    """
    shared = _SharedPostgres(home, options or EmbeddedOptions())
    shared.prepare()
    with shared.lock_file("holders") as holders:
        try:
            url = await shared.enter(holders)
            async with _background(shared.watch()):
                yield url
        finally:
            await shared.leave(holders)


class _SharedPostgres:
    def __init__(self, home: Path, options: EmbeddedOptions) -> None:
        self._cluster = Cluster(home, durable=options.durable)
        self._options = options

    def prepare(self) -> None:
        """Refuse another version's data before anything is touched; make ``home`` and the locks."""
        with self._errors_reported():
            self._cluster.check_version()
            self._cluster.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("start", "holders", "running"):
                with self.lock_file(name):
                    pass

    async def enter(self, holders: int) -> str:
        with self._errors_reported():
            async with self._start_lock():
                fcntl.flock(holders, fcntl.LOCK_SH)  # at once: to have it alone takes the start lock
                return await self._ensure_running()

    async def watch(self) -> None:
        """Start Postgres again whenever it has ended."""
        while True:
            await asyncio.sleep(self._options.watch_interval_seconds)
            try:
                with self._errors_reported():
                    if not self._is_running():
                        _logger.warning("the private Postgres has ended; it is started again")
                        async with self._start_lock():
                            await self._ensure_running()
            except DatabaseError as error:
                _logger.error("the private Postgres does not start again: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def leave(self, holders: int) -> None:
        with self._errors_reported():
            async with self._start_lock():
                try:
                    if _try_lock(holders, fcntl.LOCK_EX):
                        await self._stop()
                finally:
                    fcntl.flock(holders, fcntl.LOCK_UN)

    async def _ensure_running(self) -> str:
        """The URL at which Postgres answers. The start lock must be held."""
        started = False
        async with asyncio.timeout(self._options.start_timeout_seconds):
            while True:
                with self.lock_file("running") as running:
                    if _try_lock(running, fcntl.LOCK_EX):
                        if started:
                            raise self._cluster.failure("Postgres ended while it was starting")
                        await self._cluster.start(running)
                        started = True
                url = self._cluster.url()
                if await _answers(url):
                    return url
                await asyncio.sleep(_POLL_SECONDS)

    async def _stop(self) -> None:
        """Fast shutdown, and an immediate one if that takes too long. The start lock must be held."""
        for shutdown in (signal.SIGINT, signal.SIGQUIT):
            if self._is_running():
                with suppress(OSError, ValueError):
                    os.kill(self._cluster.postmaster_pid(), shutdown)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._options.stop_timeout_seconds):
                    await _until(lambda: not self._is_running())
                self._cluster.remove_socket_directory()
                return
        raise self._cluster.failure("Postgres does not stop")

    def lock_file(self, name: str) -> AbstractContextManager[int]:
        return _open_descriptor(self._cluster.home / f"{name}.lock")

    @asynccontextmanager
    async def _start_lock(self) -> AsyncGenerator[None]:
        with self.lock_file("start") as lock:
            await _until(lambda: _try_lock(lock, fcntl.LOCK_EX))
            yield

    def _is_running(self) -> bool:
        with self.lock_file("running") as running:
            return not _try_lock(running, fcntl.LOCK_SH)  # shared: those who look do not get in the way

    @contextmanager
    def _errors_reported(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            seconds = self._options.start_timeout_seconds
            raise self._cluster.failure(f"Postgres did not answer within {seconds:g} s") from error
        except OSError as error:
            raise self._cluster.failure(f"cannot keep a database in {self._cluster.home}: {error}") from error


async def _answers(url: str) -> bool:
    try:
        async with Database.open(url, PoolLimits(max_size=1)) as database:
            await database.ping()
    except DatabaseUnavailable:
        return False
    return True


async def _until(condition: Callable[[], bool]) -> None:
    """Look again and again: what other processes do with their locks rings no bell here."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(_POLL_SECONDS)


@contextmanager
def _open_descriptor(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@asynccontextmanager
async def _background(coroutine: Coroutine[None, None, None]) -> AsyncGenerator[None]:
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
