"""Fixtures of the database's tests: a private Postgres of a test's own, which it may kill."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from db.embedded import embedded_postgres


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where no Postgres has been yet."""
    return tmp_path / "pg"


@pytest.fixture
async def own_postgres(home: Path) -> AsyncGenerator[str]:
    """The URL of a durable Postgres in ``home``, for this test alone."""
    async with embedded_postgres(home) as url:
        yield url
