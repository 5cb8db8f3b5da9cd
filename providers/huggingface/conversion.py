"""A GGUF file's weights as an ordinary safetensors folder, converted once and kept."""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from providers.huggingface.converted_folder import converted_folder, same_file
from providers.huggingface.protocol import Converting

_BEAT_SECONDS = 1.0
_WORK_PER_BEAT_SECONDS = 0.05

Report = Callable[[Converting], None]


def converted(gguf: Path, cache_dir: Path, dtype: torch.dtype, report: Report) -> Path:
    """The folder with the converted weights. A conversion that was killed leaves nothing that counts.

    Conversions of one file wait for each other, in whichever process. Older ones of a file that has
    changed since go.
    """
    target = converted_folder(gguf, cache_dir, str(dtype).removeprefix("torch."))
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / "lock", report):
        if target.exists():
            return target
        for folder in target.parent.iterdir():
            if folder.is_dir() and (folder.suffix == ".half" or not same_file(folder, target)):
                shutil.rmtree(folder)
        half = target.with_suffix(".half")
        try:
            _convert(gguf, half, dtype, report)
            _flush(half)
            half.rename(target)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return target


def _convert(gguf: Path, target: Path, dtype: torch.dtype, report: Report) -> None:
    with _reporting(f"converting {gguf.name} (once): tokenizer", 0.0, report):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.save_pretrained(target)
    with _reporting(f"converting {gguf.name} (once): weights", 0.3, report):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
        )
    with _reporting(f"converting {gguf.name} (once): writing", 0.9, report):
        model.save_pretrained(target)


@contextmanager
def _reporting(detail: str, progress: float, report: Report) -> Iterator[None]:
    """Says again and again that the conversion advances, as long as it does: as long as it uses the CPU."""
    over = threading.Event()

    def beat() -> None:
        worked = time.process_time()
        while not over.wait(_BEAT_SECONDS):
            if time.process_time() - worked >= _WORK_PER_BEAT_SECONDS:
                worked = time.process_time()
                report(Converting(detail, progress))

    report(Converting(detail, progress))
    thread = threading.Thread(target=beat, name="conversion-beat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    """The lock ends with the process that holds it, however that ends."""
    with path.open("w") as file:
        while not _try_lock(file.fileno()):
            report(Converting("another process is converting it"))
            time.sleep(_BEAT_SECONDS)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _flush(folder: Path) -> None:
    """A rename may reach the disk before the data does; after a power cut the folder would be hollow."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
