"""Other processes that use a private Postgres: servers to be killed, and Postgres itself."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from db.database import DatabaseUnavailable
from db.embedded import embedded_postgres

_PATIENCE_SECONDS = 20.0
_ROOT = Path(__file__).parents[2]


async def hold(home: Path) -> None:
    """What another server does: enter, say so, and leave when asked to."""
    async with embedded_postgres(home) as url:
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


@asynccontextmanager
async def holder(home: Path, *, prefix: Sequence[str] = ()) -> AsyncGenerator[tuple[Process, str]]:
    """Another process inside the Postgres of ``home``, and the URL that it was given. It leaves at the end,
    unless it was killed."""
    command = (*prefix, sys.executable, "-m", "tests.db.processes", str(home))
    process = await asyncio.create_subprocess_exec(*command, cwd=_ROOT, stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process, (await process.stdout.readline()).decode().strip()
        process.stdin.close()
        await process.wait()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def postmaster_pid(home: Path) -> int:
    return int((home / "cluster" / "postmaster.pid").read_text().split()[0])


def kill_postgres(home: Path) -> None:
    os.kill(postmaster_pid(home), signal.SIGKILL)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - what is awaited rings no bell
            await asyncio.sleep(0.01)


async def answers(statement: Callable[[], Awaitable[object]]) -> bool:
    """Whether Postgres is there to run the statement."""
    try:
        await statement()
    except DatabaseUnavailable:
        return False
    return True


if __name__ == "__main__":
    asyncio.run(hold(Path(sys.argv[1])))
