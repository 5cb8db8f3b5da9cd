"""What there is of memory, what a process takes, and what a model will take (F1, H6)."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import psutil
import pytest

from providers.huggingface.catalog import Catalog
from providers.huggingface.converted_folder import converted_folder
from providers.huggingface.footprint import PROCESS_BYTES, estimated_bytes, expected_precision
from providers.huggingface.hardware import choose_precision
from providers.huggingface.memory import MIB, cgroup_limit_bytes, machine_bytes, process_bytes
from providers.huggingface.memory_alarm import MemoryAlarm, MemoryMarks
from providers.huggingface.provider import HuggingFace
from providers.huggingface.settings import HuggingFaceSettings, Precision
from tests.providers.huggingface.conftest import DEMO, fresh_demo, load
from tests.providers.huggingface.tiny_models import write_gguf_reciter, write_reciter

_NO_LIMIT_V1 = 9_223_372_036_854_771_712


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/app/web", {"app/web/memory.max": "max", "app/memory.max": "3000", "memory.max": "max"}, 3000),
        ("0::/app/web", {"app/web/memory.max": "2000", "app/memory.max": "3000"}, 2000),
        ("0::/", {"memory.max": "1000"}, 1000),
        ("0::/unseen/from/inside", {"memory.max": "1000"}, 1000),
        ("0::/app", {"app/memory.max": "max"}, None),
        ("4:cpu,memory:/a\n0::/", {"memory/a/memory.limit_in_bytes": "4000"}, 4000),
        ("4:memory:/docker/x", {"memory/memory.limit_in_bytes": "4000"}, 4000),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": f"{_NO_LIMIT_V1}"}, _NO_LIMIT_V1),
        ("1:cpu:/a", {"cpu/a/memory.limit_in_bytes": "1"}, None),
    ],
)
def test_the_lowest_limit_on_the_way_to_the_root_counts(
    own: str, limits: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    root = tmp_path / "cgroup"
    for name, limit in limits.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{limit}\n")
    (tmp_path / "self").write_text(f"{own}\n")
    assert cgroup_limit_bytes(tmp_path / "self", root) == expected


def test_without_cgroups_the_machine_has_what_it_has(tmp_path: Path) -> None:
    assert cgroup_limit_bytes(tmp_path / "none", tmp_path) is None
    assert 0 < machine_bytes() <= psutil.virtual_memory().total


def test_a_process_is_charged_with_its_share_and_one_that_has_ended_with_nothing() -> None:
    info = psutil.Process().memory_full_info()
    assert info.uss * 0.9 < process_bytes(os.getpid()) < info.rss * 1.1
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process_bytes(child.pid) == 0  # a zombie
    assert process_bytes(child.pid) == 0


@pytest.mark.parametrize("precision", get_args(Precision))
def test_the_server_expects_the_precision_that_torch_chooses(precision: Precision) -> None:
    assert f"torch.{expected_precision(precision, 'cpu')}" == str(choose_precision(precision, "cpu"))


def test_an_estimate_is_the_process_and_the_weights_as_they_will_run(settings: HuggingFaceSettings) -> None:
    write_reciter(settings.models_path / "plain", "one")
    gguf = write_gguf_reciter(settings.models_path / "packed/packed.gguf", "two")
    found = Catalog(settings.models_path).scan()
    plain, packed = found["plain"], found["packed"]
    parameters = plain.info.metadata.parameters
    assert parameters is not None
    assert packed.info.metadata.parameters == parameters

    wide, narrow = replace(settings, precision="float32"), replace(settings, precision="bfloat16")
    assert estimated_bytes(plain, wide) == PROCESS_BYTES + 4 * parameters
    assert estimated_bytes(plain, narrow) == PROCESS_BYTES + 2 * parameters
    assert estimated_bytes(packed, narrow) == PROCESS_BYTES + 2 * 2 * parameters
    converted_folder(gguf, settings.cache_dir, "bfloat16").mkdir(parents=True)
    assert estimated_bytes(packed, narrow) == PROCESS_BYTES + 2 * parameters
    assert estimated_bytes(packed, wide) == PROCESS_BYTES + 2 * 4 * parameters

    metadata = replace(plain.info.metadata, quantization="gptq", size_bytes=1000)
    quantized = replace(plain, info=replace(plain.info, metadata=metadata))
    assert estimated_bytes(quantized, wide) == PROCESS_BYTES + 1000


async def test_what_was_expected_of_the_demo_model_is_near_what_it_takes(
    demo: HuggingFace, demo_settings: HuggingFaceSettings
) -> None:
    """Its weights have been converted for ``demo``: converting leaves memory behind. Both have them mapped,
    so that each is charged with half of them."""
    expected = estimated_bytes(Catalog(demo_settings.models_path).scan()[DEMO], demo_settings)
    async with fresh_demo(demo_settings) as provider:
        await load(provider, DEMO)
        [held] = await provider.loaded()
    assert held.memory_bytes is not None
    shared = (expected - PROCESS_BYTES) / 2
    assert 0.75 * expected < held.memory_bytes + shared < expected


def test_every_mark_is_told_once_and_again_after_it_was_left(caplog: pytest.LogCaptureFixture) -> None:
    """H6."""
    alarm = MemoryAlarm(1000 * MIB, MemoryMarks())

    def told(mebibytes: int) -> list[tuple[int, str]]:
        caplog.clear()
        alarm.note(mebibytes * MIB, "big (idle)")
        return [(record.levelno, record.getMessage()) for record in caplog.records]

    line = "The loaded models take {} of 1000 MiB, {} % of HUGGINGFACE_MAX_MEMORY: big (idle)"
    assert told(699) == []
    assert told(700) == [(logging.WARNING, line.format(700, 70))]
    assert told(849) == []
    assert told(850) == [(logging.ERROR, line.format(850, 85))]
    assert told(990) == []
    assert told(800) == []
    assert told(860) == [(logging.ERROR, line.format(860, 86))]
    assert told(100) == []
    assert told(950) == [(logging.ERROR, line.format(950, 95))]
