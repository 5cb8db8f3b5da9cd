"""The private Postgres: started, shared, killed, found again, and refused where it cannot be."""

import asyncio
import fcntl
import os
import shutil
import signal
import stat
import sys
from asyncio.subprocess import PIPE, STDOUT
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest

from db.binaries import as_owner
from db.database import Database, DatabaseMisconfigured, DatabaseUnavailable, PoolLimits
from db.embedded import EmbeddedOptions, embedded_postgres
from tests.db.processes import answers, eventually, holder, kill_postgres, postmaster_pid

_ROOT = Path(__file__).parents[2]
_needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")


async def _query(url: str, sql: str) -> object:
    async with Database.open(url, PoolLimits(max_size=1)) as database:
        return await database.fetchval(sql)


def _is_stopped(home: Path) -> bool:
    """Whether no process of Postgres is left."""
    with (home / "running.lock").open() as running:
        try:
            fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


async def test_what_is_made(own_postgres: str, home: Path) -> None:
    async with Database.open(own_postgres) as database:
        row = await database.fetchrow(
            "SELECT datlocprovider, datlocale, pg_encoding_to_char(encoding) AS encoding FROM pg_database "
            "WHERE datname = current_database()"
        )
        assert row is not None
        assert tuple(row) == (b"b", "C.UTF-8", "UTF8")
        assert await database.fetchval("SELECT 'ÄÖÉ' ILIKE 'äöé'") is True
        assert await database.fetchval("SHOW listen_addresses") == ""
        assert await database.fetchval("SHOW fsync") == "on"
        assert await database.fetchval("SHOW synchronous_commit") == "on"
        assert await database.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home, *home.iterdir())}
    assert modes[home.name] == modes["cluster"] == modes["run"] == 0o700
    assert modes["password"] == 0o600


async def test_only_the_password_opens_it(own_postgres: str) -> None:
    for url in (own_postgres.replace("@", "x@"), own_postgres.replace("parley:", "postgres:")):
        with pytest.raises(DatabaseMisconfigured):
            await _query(url, "SELECT 1")


async def test_what_was_written_is_there_after_a_restart(home: Path) -> None:
    async with embedded_postgres(home) as url:
        await _query(url, "CREATE TABLE kept AS SELECT 1 AS number")
    assert _is_stopped(home)
    async with embedded_postgres(home) as url:
        assert await _query(url, "SELECT number FROM kept") == 1


# Sharing


async def test_the_last_one_to_leave_stops_it(home: Path) -> None:
    async with embedded_postgres(home) as url:
        pid = postmaster_pid(home)
        async with holder(home) as (_, url_of_other):
            assert url_of_other == url
            assert postmaster_pid(home) == pid
        assert await _query(url, "SELECT 1") == 1
    assert _is_stopped(home)


async def test_the_first_one_may_leave_first(home: Path) -> None:
    async with AsyncExitStack() as stack:
        async with embedded_postgres(home) as url:
            await stack.enter_async_context(holder(home))
        assert await _query(url, "SELECT 1") == 1
    assert _is_stopped(home)


async def test_coming_and_going_at_the_same_time(home: Path) -> None:
    async def come_and_go() -> None:
        for _ in range(4):
            async with embedded_postgres(home, EmbeddedOptions(durable=False)) as url:
                assert await _query(url, "SELECT 1") == 1

    await asyncio.gather(*(come_and_go() for _ in range(4)))
    assert _is_stopped(home)


async def test_servers_that_start_at_the_same_time_make_it_once(home: Path) -> None:
    async with AsyncExitStack() as stack:
        entered = [stack.enter_async_context(holder(home)) for _ in range(3)]
        urls = {url for _, url in await asyncio.gather(*entered)}
        assert len(urls) == 1
        assert await _query(urls.pop(), "SELECT 1") == 1
    assert _is_stopped(home)


# Ends by force


async def test_a_killed_server_leaves_it_to_the_next(home: Path) -> None:
    async with holder(home) as (process, url):
        process.kill()
        await process.wait()
    pid = postmaster_pid(home)
    assert await _query(url, "SELECT 1") == 1
    async with embedded_postgres(home):
        assert postmaster_pid(home) == pid
    assert _is_stopped(home)


async def test_a_killed_server_does_not_count_as_one_that_stays(home: Path) -> None:
    async with embedded_postgres(home), holder(home) as (process, _):
        process.kill()
    assert _is_stopped(home)


async def test_server_and_postgres_are_killed_and_the_number_goes_to_another_process(home: Path) -> None:
    async with holder(home) as (process, url):
        await _query(url, "CREATE TABLE kept AS SELECT 1 AS number")
        process.kill()
        await process.wait()
    kill_postgres(home)
    another = await asyncio.create_subprocess_exec(*as_owner(home / "cluster"), "sleep", "60")
    for pid_file in (home / "cluster" / "postmaster.pid", home / "run" / ".s.PGSQL.5432.lock"):
        _, *rest = pid_file.read_text().splitlines(keepends=True)
        pid_file.write_text("".join([f"{another.pid}\n", *rest]))
    async with embedded_postgres(home) as url:
        assert await _query(url, "SELECT number FROM kept") == 1
    another.kill()
    await another.wait()


async def test_a_server_is_killed_while_it_makes_the_database(home: Path) -> None:
    async def is_being_made() -> bool:
        return (home / "cluster.new" / "base").exists()

    entering = holder(home)
    waiting = asyncio.create_task(entering.__aenter__())
    await eventually(is_being_made)
    for child in psutil.Process().children(recursive=False):
        if "tests.db.processes" in child.cmdline():
            child.kill()
    await waiting
    await entering.__aexit__(None, None, None)
    async with embedded_postgres(home) as url:
        assert await _query(url, "SELECT 1") == 1
    assert not (home / "cluster.new").exists()


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT], ids=["killed", "stopped by hand"])
async def test_one_of_many_starts_it_again(home: Path, kill: signal.Signals) -> None:
    async with (
        embedded_postgres(home) as url,
        embedded_postgres(home),
        holder(home),
        Database.open(url, PoolLimits(2, 2)) as database,
    ):
        await database.execute("CREATE TABLE kept AS SELECT 1 AS number")
        for _ in range(2):
            killed = postmaster_pid(home)
            os.kill(killed, kill)
            await eventually(lambda killed=killed: _has_gone(killed))  # type: ignore[misc]
            await eventually(lambda: answers(database.ping))
            assert postmaster_pid(home) != killed
        assert await database.fetchval("SELECT number FROM kept") == 1
    assert _is_stopped(home)


async def _has_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# Places


async def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    home = tmp_path / ("long-" * 20) / "pg"
    async with embedded_postgres(home) as url, holder(home) as (_, url_of_other):
        assert url_of_other == url
        directory = Path((home / "socket_directory").read_text())
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert await _query(url, "SELECT 1") == 1
    assert not directory.exists()


async def test_somebody_else_took_the_distant_socket_directory(tmp_path: Path) -> None:
    home = tmp_path / ("long-" * 20) / "pg"
    stranger = tmp_path / "stranger"
    stranger.mkdir(mode=0o755)
    home.mkdir(parents=True)
    (home / "socket_directory").write_text(str(stranger))
    async with embedded_postgres(home) as url:
        assert await _query(url, "SELECT 1") == 1
        assert not list(stranger.iterdir())


@pytest.mark.parametrize("name", ["a, b", 'it\'s "$HOME" `x`', "größe", "%20&host=x"])
async def test_names_that_mean_something_elsewhere(tmp_path: Path, name: str) -> None:
    async with embedded_postgres(tmp_path / name) as url:
        assert await _query(url, "SELECT 1") == 1


async def test_a_relative_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.parent.mkdir(exist_ok=True)
    monkeypatch.chdir(home.parent)
    async with embedded_postgres(Path(home.name)) as url:
        monkeypatch.chdir("/")
        assert await _query(url, "SELECT 1") == 1


# Who it runs as


@_needs_root
async def test_as_root_nothing_is_opened_to_others(home: Path) -> None:
    before = {path: path.stat().st_mode for path in home.parents}
    async with embedded_postgres(home):
        process = psutil.Process(postmaster_pid(home))
        assert 0 not in process.uids()
        assert {path: path.stat().st_mode for path in home.parents} == before
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert {path.name for path in home.iterdir() if path.stat().st_uid != 0} == {"cluster"}


_DOCKER_CAPABILITIES = (
    "--bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,"
    "+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap"
)


@_needs_root
@pytest.mark.parametrize(
    "prefix",
    [
        ("setpriv", _DOCKER_CAPABILITIES, "--no-new-privs"),
        ("unshare", "--user", "--map-root-user"),
        (
            "setpriv",
            "--reuid=65534",
            "--clear-groups",
            "--inh-caps=+dac_override",
            "--ambient-caps=+dac_override",
        ),
    ],
    ids=["root of a container", "root where there is nobody else", "an ordinary user"],
)
async def test_users(tmp_path: Path, prefix: tuple[str, ...]) -> None:
    async with holder(tmp_path / "pg", prefix=prefix) as (process, url):
        assert await _query(url, "SELECT 1") == 1
        assert 0 in psutil.Process(process.pid).uids() or prefix[1] == "--reuid=65534"
    assert _is_stopped(tmp_path / "pg")


@_needs_root
async def test_data_that_root_owns(home: Path) -> None:
    async with embedded_postgres(home) as url:
        await _query(url, "CREATE TABLE kept AS SELECT 1 AS number")
    for path in (home, *home.rglob("*")):
        os.chown(path, 0, 0)
    async with embedded_postgres(home) as url:
        assert await _query(url, "SELECT number FROM kept") == 1
    assert _is_stopped(home)


# Where it cannot be


async def test_data_of_another_version(home: Path) -> None:
    (home / "cluster").mkdir(parents=True)
    (home / "cluster" / "PG_VERSION").write_text("17\n")
    with pytest.raises(DatabaseMisconfigured, match="written by Postgres 17"):
        await embedded_postgres(home).__aenter__()
    assert [path.name for path in home.rglob("*")] == ["cluster", "PG_VERSION"]


async def test_a_file_is_in_the_way(home: Path) -> None:
    home.write_text("")
    with pytest.raises(DatabaseUnavailable, match="cannot keep a database in"):
        await embedded_postgres(home).__aenter__()


async def test_damaged_data(home: Path) -> None:
    async with embedded_postgres(home):
        pass
    (home / "cluster" / "global" / "pg_control").write_bytes(b"")
    with pytest.raises(DatabaseUnavailable, match="pg_control") as raised:
        await embedded_postgres(home).__aenter__()
    assert "DATABASE_URL" in str(raised.value)
    assert _is_stopped(home)


async def test_a_postgres_that_somebody_else_started(home: Path) -> None:
    async with embedded_postgres(home):
        in_use = home / "running.lock"
        in_use.unlink()  # what a Postgres looks like that was not started here
        with pytest.raises(DatabaseUnavailable, match="another Postgres"):
            await embedded_postgres(home).__aenter__()
        os.kill(postmaster_pid(home), signal.SIGINT)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a file system of its own to fill")
async def test_a_full_disk(tmp_path: Path) -> None:
    script = f"mount -t tmpfs -o size=8m none {tmp_path}"
    script += f" && exec {sys.executable} -m tests.db.processes {tmp_path}/pg"
    command = ("unshare", "--map-root-user", "--mount", "sh", "-c", script)
    process = await asyncio.create_subprocess_exec(*command, cwd=_ROOT, stdout=PIPE, stderr=STDOUT)
    output, _ = await process.communicate()
    assert process.returncode == 1
    assert b"initdb failed" in output
    assert b"No space left on device" in output
    assert b"DATABASE_URL" in output


async def test_cancelled_while_starting(home: Path) -> None:
    async def enter() -> None:
        async with embedded_postgres(home):
            pass

    async def is_being_made() -> bool:
        return (home / "cluster.new" / "base").exists()

    entering = asyncio.create_task(enter())
    await eventually(is_being_made)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    async with embedded_postgres(home) as url:
        assert await _query(url, "SELECT 1") == 1
