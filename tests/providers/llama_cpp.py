"""A real llama.cpp server with the demo model, in a process of its own."""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.providers.huggingface.conftest import demo_file

ALIAS = "smollm2"
WINDOW = 512
KEY = "sk-llama-0123456789"

_SERVER = Path(__file__).with_name("llama_cpp_server.py")


@asynccontextmanager
async def llama_cpp() -> AsyncIterator[str]:
    """Its URL, as far as the path. It answers who has ``KEY``."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs llama.cpp: the package xllamacpp has it, for Linux on x86_64")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(_SERVER), str(demo_file()), ALIAS, str(WINDOW), KEY),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            url = (await process.stdout.readline()).decode().strip()
        assert url, f"llama.cpp ended with {await process.wait()}"
        yield f"{url}/v1"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
