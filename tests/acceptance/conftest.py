"""Real servers in processes of their own, and the public clients that talk to them."""

from collections.abc import AsyncIterator

import pytest

from tests.acceptance.parley import Parley, serving


@pytest.fixture(scope="module")
async def parley(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Parley]:
    """A server with its own data directory, the demo model, and the Ollama that OLLAMA_HOST names."""
    async with serving(tmp_path_factory.mktemp("data")) as server:
        yield server
