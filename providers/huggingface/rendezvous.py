"""Where a worker that was just started finds the server: a Unix socket for one connection.

The folder is open to this user alone, which is what authenticates the worker. The socket's file is there
only until the worker has connected, so a killed server leaves at most a file that nobody uses again.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from providers.errors import Unavailable

_LEFT_BEHIND_AFTER_SECONDS = 3600.0

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def rendezvous(runtime_dir: Path) -> AsyncGenerator[tuple[Path, asyncio.Future[Connection]], None]:
    """The socket's path, and the first connection to it, which is closed at the end.

    Raises Unavailable where no socket can be had.
    """
    path = runtime_dir / f"{secrets.token_hex(4)}.sock"
    connected: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if connected.done():
            writer.close()
            return
        connected.set_result((reader, writer))
        server.close()
        path.unlink(missing_ok=True)

    try:
        _prepare(runtime_dir)
        server = await asyncio.start_unix_server(accept, path)
    except OSError as error:
        raise Unavailable(f"No socket for a model worker can be made at {path}: {error}.") from error
    try:
        yield path, connected
    finally:
        server.close()
        path.unlink(missing_ok=True)
        if connected.done() and not connected.cancelled():
            connected.result()[1].close()
        connected.cancel()


def _prepare(runtime_dir: Path) -> None:
    runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    runtime_dir.chmod(0o700)
    for path in runtime_dir.glob("*.sock"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFT_BEHIND_AFTER_SECONDS:
                path.unlink()
