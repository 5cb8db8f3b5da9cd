"""The files of a private Postgres: made, started from, and cleaned up after."""

import asyncio
import os
import pwd
import secrets
import shlex
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import psutil

from db.binaries import MAJOR, as_owner, binary
from db.database import DatabaseMisconfigured, DatabaseUnavailable

_PORT = "5432"  # nothing listens on it: it is part of the socket's name
_SOCKET = f".s.PGSQL.{_PORT}"
_SOCKET_PATH_LIMIT = 103  # bytes: the smallest sun_path of the supported systems, without its NUL
_LOG_TAIL_LINES = 8

_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "256MB",
    "io_method": "sync",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_min_messages": "log",  # what Postgres does; what statements get, their caller is told
}
_SETTINGS_NOT_DURABLE = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",  # its workers are the superuser's: while one is inside, nobody else drops a database
}


class StartFailed(DatabaseUnavailable):
    """The private Postgres cannot be started, joined or stopped; says why, and the end of its log."""


class Cluster:
    """What lies in ``home``: ``cluster`` (Postgres' data), ``run`` (its socket), the password and the log.
    All but the data belongs to whoever runs the server."""

    def __init__(self, home: Path, *, durable: bool) -> None:
        self.home = home.absolute()
        self._durable = durable
        self._data = self.home / "cluster"
        self._fresh = self.home / "cluster.new"
        self._log = self.home / "postgres.log"

    def check_version(self) -> None:
        """Raises DatabaseMisconfigured for the data of another version."""
        version_file = self._data / "PG_VERSION"
        if version_file.exists() and (version := version_file.read_text().strip()) != MAJOR:
            raise DatabaseMisconfigured(
                f"{self._data} was written by Postgres {version}, and this is Postgres {MAJOR}: choose "
                f"another data directory, or run Postgres {version} on it and set DATABASE_URL"
            )

    def url(self) -> str:
        password = (self.home / "password").read_text()
        host = quote(str(self._socket_directory()), safe="")
        return f"postgresql://parley:{password}@/parley?host={host}&port={_PORT}"

    def postmaster_pid(self) -> int:
        """Raises OSError or ValueError where there is none, or not yet."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    async def start(self, running: int) -> None:
        """Have Postgres started, as a process that outlives this one; made first, if it is not there yet.

        All programs inherit the locked file ``running``. Nothing else may be using the data.
        """
        with suppress(FileNotFoundError):
            self._log.replace(self._log.with_suffix(".log.1"))
        if not self._data.exists():
            await self._create(running)
        self._remove_leftovers()
        settings = _SETTINGS | ({} if self._durable else _SETTINGS_NOT_DURABLE)
        settings["unix_socket_directories"] = str(self._socket_directory())
        options = shlex.join(["-p", _PORT, *(f"--{name}={value}" for name, value in settings.items())])
        await self._run(running, "pg_ctl", "start", "-W", "-D", self._data.name, "-o", options)

    async def _create(self, running: int) -> None:
        """initdb, a role without special rights, and its database; aside, so that it is there whole or not
        at all."""
        await asyncio.to_thread(shutil.rmtree, self._fresh, ignore_errors=True)
        self._fresh.mkdir(mode=0o700)
        if os.geteuid() == 0:
            with suppress(OSError, KeyError):  # where there is no other user, it stays with root
                nobody = pwd.getpwnam("nobody")
                os.chown(self._fresh, nobody.pw_uid, nobody.pw_gid)
        password = secrets.token_urlsafe(32)
        _write_private(self.home / "password", password)
        directory = ("-D", self._fresh.name)
        locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8")
        sync = () if self._durable else ("--no-sync",)
        await self._run(running, "initdb", *directory, "-U", "postgres", "-A", "reject", *locale, *sync)
        (self._fresh / "pg_hba.conf").write_text("local all parley scram-sha-256\n")
        statements = (
            f"CREATE ROLE parley LOGIN CREATEDB PASSWORD '{password}'\nCREATE DATABASE parley OWNER parley\n"
        )
        single = ("--single", *directory, "-c", "exit_on_error=on", "postgres")
        await self._run(running, "postgres", *single, statements=statements)
        self._fresh.rename(self._data)

    async def _run(self, running: int, program: str, *arguments: str, statements: str = "") -> None:
        """Run one of Postgres' programs in ``home`` to its end."""
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *as_owner(self._data if self._data.exists() else self._fresh),
                str(binary(program)),
                *arguments,
                cwd=self.home,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(running,),
            )
        try:
            await process.communicate(statements.encode())
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        if process.returncode != 0:
            raise self.failure(f"{program} failed")

    def _remove_leftovers(self) -> None:
        """The pid files of a Postgres that was killed. Postgres would believe them, once another process has
        got that number."""
        with suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(self.postmaster_pid())
            if process.name() == "postgres" and _may_work_in(process, self._data):
                raise self.failure(f"another Postgres (process {process.pid}) may be using {self._data}")
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        for name in (_SOCKET, f"{_SOCKET}.lock"):
            (self._socket_directory() / name).unlink(missing_ok=True)

    def _socket_directory(self) -> Path:
        """``run``; where that cannot be a socket's path, what the file ``socket_directory`` names."""
        run = self.home / "run"
        if len(os.fsencode(run / _SOCKET)) <= _SOCKET_PATH_LIMIT and "," not in str(run):  # it parts a list
            run.mkdir(mode=0o700, exist_ok=True)
            return run
        record = self.home / "socket_directory"
        if record.exists():
            recorded = Path(record.read_text())
            recorded.mkdir(mode=0o700, exist_ok=True)
            status = recorded.lstat()
            if status.st_uid == os.geteuid() and status.st_mode & 0o7777 == 0o700:
                return recorded
        directory = Path(tempfile.mkdtemp(prefix="parley-"))
        _write_private(record, str(directory))
        return directory

    def remove_socket_directory(self) -> None:
        """Where it is not in ``home``, after Postgres has stopped."""
        record = self.home / "socket_directory"
        with suppress(OSError):
            Path(record.read_text()).rmdir()
            record.unlink()

    def failure(self, reason: str) -> StartFailed:
        lines = [f"{reason}. Choose another data directory, or set DATABASE_URL to a Postgres of your own."]
        if os.geteuid() == 0:
            lines.append("Or run as an ordinary user: Postgres does not run as root.")
        with suppress(OSError):
            log = self._log.read_text(errors="replace").splitlines()
            lines += [f"The end of {self._log}:", *log[-_LOG_TAIL_LINES:]]
        return StartFailed("\n  ".join(lines))


def _may_work_in(process: psutil.Process, directory: Path) -> bool:
    try:
        return Path(process.cwd()) == directory.resolve()
    except psutil.AccessDenied:
        return True


def _write_private(path: Path, text: str) -> None:
    """A file of 0600 that is there whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600, exist_ok=False)
    fresh.write_text(text)
    fresh.rename(path)
