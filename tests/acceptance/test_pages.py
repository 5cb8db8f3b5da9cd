"""The pages in a real Chromium that reaches nothing but this machine; what is done there is in pages.mjs."""

import asyncio
import re
import shutil
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from server.pages import DIST
from tests.acceptance.parley import ROOT, Parley

_NODE = ROOT / "tests/node"
_SCRIPT = _NODE / "pages.mjs"
_SCENARIOS = re.findall(r"^  async '(.+)'\(page\)", _SCRIPT.read_text(), re.MULTILINE)
_LIMIT_SECONDS = 120


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pages' pictures go."""
    return tmp_path_factory.mktemp("pictures")


@pytest.mark.parametrize("scenario", _SCENARIOS)
async def test_in_a_browser(scenario: str, parley: Parley, pictures: Path) -> None:
    node = shutil.which("node")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if node is None or not (_NODE / "node_modules/playwright-core").is_dir():
        pytest.skip("needs node, and `npm ci` in tests/node")
    if browser is None:
        pytest.skip("needs a browser: chromium or google-chrome")
    if not (DIST / "index.html").is_file():
        pytest.skip("needs the pages: make setup, with Node 20.19 or newer")
    command = (node, str(_SCRIPT), browser, parley.url, str(pictures), scenario)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT)
    try:
        async with asyncio.timeout(_LIMIT_SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
