"""How much memory a model will take, judged by its files before anything is loaded."""

from functools import cache
from pathlib import Path
from typing import Literal

from providers.huggingface.catalog import ModelFiles
from providers.huggingface.converted_folder import converted_folder
from providers.huggingface.settings import Device, HuggingFaceSettings, Precision

# Interpreter, torch, transformers, tokenizer and the work of a reply. Measured: 313 MiB beside weights of a
# few kilobytes, 356 to 384 MiB beside those of a model with 135 million parameters.
PROCESS_BYTES = 400 * 1024 * 1024
_CONVERSION_FACTOR = 2  # of the weights: measured 1.7 in float32, 1.9 in bfloat16

WeightType = Literal["float32", "bfloat16", "float16"]

_WEIGHT_BYTES: dict[WeightType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_CONVERTED_TYPES = {"F64", "F32", "F16", "BF16"}  # what is loaded in whichever precision it is to run in


def estimated_bytes(model: ModelFiles, settings: HuggingFaceSettings) -> int:
    """What a process with this model takes of the machine's memory, the conversion of weights that are not
    converted yet included. A GPU's own memory does not count; on their way there the weights do.

    Looks at files: call it from a thread.
    """
    metadata = model.info.metadata
    precision = expected_precision(settings.precision, settings.device)
    is_converted = model.gguf_file is not None or metadata.quantization in _CONVERTED_TYPES
    if is_converted and metadata.parameters is not None:
        weights = metadata.parameters * _WEIGHT_BYTES[precision]
    else:
        weights = metadata.size_bytes or 0
    if model.gguf_file is not None and not _is_kept(
        model.folder / model.gguf_file, settings.cache_dir, precision
    ):
        weights *= _CONVERSION_FACTOR
    return PROCESS_BYTES + weights


def expected_precision(precision: Precision, device: Device) -> WeightType:
    """What ``hardware.choose_precision`` will choose in the worker; where only torch could tell, a guess on
    the safe side."""
    match precision, device:
        case "auto", "mps":
            return "float16"
        case "auto", "cuda":
            return "bfloat16"
        case "auto", _:
            return "bfloat16" if _cpu_computes_bfloat16() else "float32"
        case "float16", "cpu":
            return "bfloat16"
        case (("float32" | "bfloat16" | "float16"), _):
            return precision


@cache
def _cpu_computes_bfloat16() -> bool:
    """As ``hardware`` asks torch, which the server does not import."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # another system, where float32 is the safe guess
        return False
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not _BFLOAT16_FLAGS.isdisjoint(flags.split())


def _is_kept(gguf: Path, cache_dir: Path, precision: str) -> bool:
    try:
        return converted_folder(gguf, cache_dir, precision).exists()
    except OSError:  # its file has just gone; the load will say so
        return False
