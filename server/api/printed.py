"""Writes the schema to the file that is named: ``python -m server.api.printed schema.graphql``."""

import sys
from pathlib import Path

from server.api import schema


def printed() -> str:
    """The schema in GraphQL's own language: types by name, fields in the order that reads best."""
    return schema.as_str() + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(printed(), encoding="utf-8")
