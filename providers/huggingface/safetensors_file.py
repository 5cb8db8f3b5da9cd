"""The header of a safetensors file: how many weights of which type it holds."""

from collections import Counter
from math import prod
from pathlib import Path

import msgspec

from providers.huggingface.damage import DamagedFile

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_weight_counts(path: Path) -> Counter[str]:
    """The number of weights of each type, such as ``{"BF16": 134515008}``.

    Raises DamagedFile when the file is not as long as its header says, or has none, and OSError.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
            raise DamagedFile(f"{path.name} is damaged or not a safetensors file (its header is cut short)")
        header = file.read(length)
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = [msgspec.json.decode(entry, type=_Tensor) for entry in entries.values()]
    except msgspec.MsgspecError as error:
        raise DamagedFile(f"{path.name} is damaged: its header is not what safetensors writes") from error
    missing = _LENGTH_BYTES + length + max((tensor.data_offsets[1] for tensor in tensors), default=0) - size
    if missing > 0:
        raise DamagedFile(f"{path.name} is cut short: {missing} bytes are missing at its end")
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += prod(tensor.shape)
    return counts
