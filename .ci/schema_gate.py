"""Holds back a schema that breaks clients unannounced.

``python .ci/schema_gate.py [BASE]``, in the repository's root, compares schema.graphql with the one of the
commit BASE; without it, of the commit that the work at hand stands on. A change that can break a client needs
a new line with "Breaking:" under [Unreleased] in CHANGELOG.md.
"""

import subprocess
import sys
from pathlib import Path

from graphql import build_schema
from graphql.utilities import find_breaking_changes

_SCHEMA = "schema.graphql"
_CHANGELOG = "CHANGELOG.md"


def main(base: str | None) -> int:
    base = base or _base()
    earlier = _file(base, _SCHEMA) if base else None
    if earlier is None:
        print(f"schema gate: skipped, there is no earlier {_SCHEMA} to compare with")
        return 0
    now = Path(_SCHEMA).read_text(encoding="utf-8")
    changes = find_breaking_changes(build_schema(earlier), build_schema(now))
    for change in changes:
        print(f"schema gate: {change.type.name}: {change.description}")
    announced = _announced(Path(_CHANGELOG).read_text(encoding="utf-8"))
    if changes and announced <= _announced(_file(base or "", _CHANGELOG) or ""):
        print(f'schema gate: clients break; add a "Breaking:" line under [Unreleased] in {_CHANGELOG}')
        return 1
    print(f"schema gate: passed, {len(changes)} breaking changes since {base}")
    return 0


def _base() -> str | None:
    """Where this branch left origin/main. On that commit itself: HEAD while the schema differs from it, else
    the commit before. None where there is none."""
    head, fork = _commit("HEAD"), _git("merge-base", "HEAD", "origin/main")
    if fork is not None and fork.strip() != head:
        return fork.strip()
    if head is not None and _file(head, _SCHEMA) != Path(_SCHEMA).read_text(encoding="utf-8"):
        return head
    return _commit("HEAD^1")


def _announced(changelog: str) -> set[str]:
    """The lines under [Unreleased] that say what breaks."""
    _, _, rest = changelog.partition("## [Unreleased]")
    section = rest.partition("\n## ")[0]
    return {line for line in section.splitlines() if "Breaking:" in line}


def _commit(name: str) -> str | None:
    found = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return None if found is None else found.strip()


def _file(commit: str, path: str) -> str | None:
    return _git("show", f"{commit}:{path}")


def _git(*arguments: str) -> str | None:
    """What git prints; None where it refuses."""
    command = ["git", *arguments]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    return None if result.returncode else result.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))
