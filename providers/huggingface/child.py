"""A child process: started apart from the terminal, its last words kept, its end certain."""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_GRACE_SECONDS = 0.5
_LAST_WORDS_BYTES = 4096
_IMPORT_ROOT = Path(__file__).parents[2]


class Child:
    """``silenced`` is done when the child has closed its standard error, which is when it ends."""

    def __init__(self, process: Process, stderr: asyncio.StreamReader) -> None:
        self._process = process
        self._tail = b""
        self.silenced = asyncio.create_task(self._read(stderr))

    @classmethod
    async def start(cls, command: tuple[str, ...], environment: Mapping[str, str]) -> "Child":
        """Its environment is ``environment`` and nothing else. Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            cwd=_IMPORT_ROOT,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C in the terminal is for the server alone
        )
        if process.stderr is None:
            raise OSError("the process has no standard error")
        return cls(process, process.stderr)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def last_words(self) -> str:
        return self._tail.decode("utf-8", "replace").strip()

    async def fade(self) -> None:
        """Gives it the time to end by itself. A signal that meets it dying would cost its return code."""
        await asyncio.wait((self.silenced,), timeout=_GRACE_SECONDS)

    async def end(self) -> int:
        """Its return code, negative for a signal. It is asked to end first and killed after a grace."""
        if not self.silenced.done():
            with suppress(ProcessLookupError):
                self._process.terminate()
        try:
            async with asyncio.timeout(_GRACE_SECONDS):
                return_code = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            return_code = await self._process.wait()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                self._process.kill()
            raise
        with suppress(ProcessLookupError):
            # What it left behind would hold its standard error, and with it this wait.
            os.killpg(self._process.pid, signal.SIGKILL)
        await self.silenced
        return return_code

    async def _read(self, stderr: asyncio.StreamReader) -> None:
        while chunk := await stderr.read(_LAST_WORDS_BYTES):
            self._tail = (self._tail + chunk)[-_LAST_WORDS_BYTES:]
