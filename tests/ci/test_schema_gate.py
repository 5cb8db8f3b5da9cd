"""The schema gate on real repositories."""

import subprocess
import sys
from pathlib import Path

import pytest

GATE = Path(__file__).parents[2] / ".ci" / "schema_gate.py"

FIRST = "type Query { a: Int b(c: Int): Int }\n"
WIDER = "type Query { a: Int b(c: Int, d: Int): Int e: Int }\n"
BROKEN = "type Query { a: String }\n"
QUIET = "# Changelog\n\n## [Unreleased]\n\n- New.\n\n## [0.1.0]\n\n- Breaking: long ago.\n"
LOUD = QUIET.replace("- New.", "- New.\n- Breaking: b went.")


class Repository:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        settings = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
        command = ["git", *settings, "-c", "commit.gpgsign=false", *arguments]
        return subprocess.run(
            command, cwd=self.folder, check=True, capture_output=True, encoding="utf-8"
        ).stdout.strip()

    def write(self, schema: str | None, changelog: str = QUIET) -> None:
        (self.folder / "CHANGELOG.md").write_text(changelog)
        if schema is not None:
            (self.folder / "schema.graphql").write_text(schema)

    def commit(self, schema: str | None, changelog: str = QUIET) -> str:
        self.write(schema, changelog)
        self.git("add", ".")
        self.git("commit", "--quiet", "--allow-empty", "--message", "A change")
        return self.git("rev-parse", "HEAD")

    def gate(self, *arguments: str) -> tuple[int, str]:
        """The gate's exit status and output."""
        done = subprocess.run(
            [sys.executable, str(GATE), *arguments],
            cwd=self.folder,
            check=False,
            capture_output=True,
            encoding="utf-8",
        )
        assert done.stderr == ""
        return done.returncode, done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_a_first_schema_has_nothing_to_break(repository: Repository) -> None:
    repository.write(FIRST)
    assert repository.gate() == (
        0,
        "schema gate: skipped, there is no earlier schema.graphql to compare with\n",
    )
    repository.commit(None)
    (repository.folder / "schema.graphql").unlink()
    repository.git("add", ".")
    repository.git("commit", "--quiet", "--message", "No schema")
    repository.commit(FIRST)
    assert "skipped" in repository.gate()[1]


def test_a_wider_schema_passes(repository: Repository) -> None:
    repository.commit(FIRST)
    repository.commit(WIDER)
    status, output = repository.gate()
    assert (status, "passed, 0 breaking" in output) == (0, True)


def test_a_breaking_change_is_held_back_and_named(repository: Repository) -> None:
    repository.commit(FIRST)
    repository.commit(BROKEN)
    status, output = repository.gate()
    assert status == 1
    assert "FIELD_REMOVED: Field Query.b was removed." in output
    assert "FIELD_CHANGED_KIND" in output
    assert "CHANGELOG.md" in output


def test_an_announced_breaking_change_passes(repository: Repository) -> None:
    repository.commit(FIRST)
    repository.commit(BROKEN, LOUD)
    status, output = repository.gate()
    assert (status, "passed" in output) == (0, True)


def test_an_earlier_announcement_covers_no_later_change(repository: Repository) -> None:
    repository.commit(FIRST, LOUD)
    repository.commit(BROKEN, LOUD)
    assert repository.gate()[0] == 1


def test_an_announcement_under_a_release_does_not_count(repository: Repository) -> None:
    repository.commit(FIRST)
    repository.commit(BROKEN, QUIET + "- Breaking: b went.\n")
    assert repository.gate()[0] == 1


def test_work_that_is_not_committed_is_compared_with_the_commit(repository: Repository) -> None:
    repository.commit(FIRST)
    repository.write(BROKEN)
    assert repository.gate()[0] == 1
    repository.write(BROKEN, LOUD)
    assert repository.gate()[0] == 0


def test_a_branch_is_compared_with_where_it_left_the_main_one(repository: Repository) -> None:
    landed = repository.commit(FIRST)
    repository.git("update-ref", "refs/remotes/origin/main", landed)
    repository.commit(BROKEN)
    repository.commit(BROKEN)
    assert repository.gate()[0] == 1
    repository.commit(FIRST)
    assert repository.gate()[0] == 0
    repository.git("update-ref", "refs/remotes/origin/main", "HEAD")
    repository.commit(BROKEN, LOUD)
    assert repository.gate()[0] == 0


def test_the_commit_to_compare_with_can_be_named(repository: Repository) -> None:
    first = repository.commit(FIRST)
    repository.commit(BROKEN)
    repository.commit(BROKEN)
    assert repository.gate()[0] == 0
    assert repository.gate(first)[0] == 1
