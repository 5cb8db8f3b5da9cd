"""What the local Hugging Face provider is told: folders, device, limits."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from providers.huggingface.memory import machine_bytes
from providers.huggingface.memory_alarm import MemoryMarks

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


def default_max_memory_bytes() -> int:
    """Half of what there is."""
    return machine_bytes() // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceSettings:
    """``cache_dir`` holds converted weights. ``runtime_dir`` holds the sockets that workers connect to: it
    belongs to this user alone and its path is short (a socket's path has room for about 100 bytes).

    All loaded models together are at most ``max_loaded_models`` and take at most ``max_memory_bytes`` of the
    machine's memory, a GPU's own not counted. Every ``cleanup_interval_seconds`` (``None``: never) what they
    take is held against ``memory_marks``.

    ``stream_timeout_seconds`` is the longest silence of a stream, ``load_timeout_seconds`` the longest plain
    load and the longest silence of a conversion. ``max_queued_requests`` is per model. ``environment`` is
    all that a worker gets of the server's (``child_environment``); ``worker_command`` starts one.
    """

    models_path: Path
    cache_dir: Path
    runtime_dir: Path
    threads: int
    device: Device = "auto"
    precision: Precision = "auto"
    load_timeout_seconds: float = 30.0
    stream_timeout_seconds: float = 300.0
    max_loaded_models: int = 2
    max_memory_bytes: int = field(default_factory=default_max_memory_bytes)
    memory_marks: MemoryMarks = field(default_factory=MemoryMarks)
    cleanup_interval_seconds: float | None = None
    max_queued_requests: int = 256
    environment: Mapping[str, str] = field(default_factory=dict)
    worker_command: tuple[str, ...] = (sys.executable, "-m", "providers.huggingface.worker")


def default_threads() -> int:
    """All cores but one: torch threads beside a busy neighbour are slower than fewer threads alone."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores - 1)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Of the server's environment what a worker needs to run, and nothing that could be a secret."""
    return {name: environ[name] for name in _PASSED_ON if name in environ}
