"""The header of a GGUF file: what the model is, without its tensors' data.

``gguf.GGUFReader`` keeps every token of the vocabulary as arrays of its own and needs seconds for that; here
vocabularies are walked over.
"""

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, LlamaFileType

from providers.huggingface.damage import DamagedFile

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 8
_MAX_KEPT_ELEMENTS = 64

Value = str | int | float | bool | list[str]


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """``metadata`` lacks long arrays; ``parameters`` is the number of weights."""

    metadata: dict[str, Value]
    parameters: int
    quantization: str

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return value if isinstance(value, int) else None


def read_gguf_header(path: Path) -> GgufHeader:
    """Raises DamagedFile when the file is no GGUF, or shorter than its header says, and OSError."""
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
                return _Cursor(blob).header()
        except (struct.error, ValueError, KeyError, OverflowError) as error:
            raise DamagedFile(f"{path.name} is damaged or not a GGUF file ({error})") from error


class _Cursor:
    """A position in the mapped file."""

    def __init__(self, blob: mmap.mmap) -> None:
        self._blob = blob
        self._position = 0

    def header(self) -> GgufHeader:
        if self._blob[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._position = 4
        version, tensors, pairs = self._take("<I"), self._take("<Q"), self._take("<Q")
        if version not in _VERSIONS:
            raise ValueError(f"version {version} is not supported")
        metadata: dict[str, Value] = {}
        for _ in range(pairs):
            key = self._string()
            value = self._value(GGUFValueType(self._take("<I")))
            if value is not None:
                metadata[key] = value
        weights = self._tensors(tensors, alignment=_alignment(metadata))
        return GgufHeader(metadata, weights.total(), _quantization(metadata, weights))

    def _tensors(self, count: int, alignment: int) -> Counter[GGMLQuantizationType]:
        """How many weights are stored in which type."""
        weights: Counter[GGMLQuantizationType] = Counter()
        end = 0
        for _ in range(count):
            self._string()
            dimensions = self._take("<I")
            if dimensions > _MAX_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            elements = prod(self._take("<Q") for _ in range(dimensions))
            kind = GGMLQuantizationType(self._take("<I"))
            block_elements, block_bytes = GGML_QUANT_SIZES[kind]
            end = max(end, self._take("<Q") + elements // block_elements * block_bytes)
            weights[kind] += elements
        start = -(-self._position // alignment) * alignment
        if start + end > len(self._blob):
            raise ValueError(f"{start + end - len(self._blob)} bytes are missing at its end")
        return weights

    def _value(self, kind: GGUFValueType) -> Value | None:
        if kind is GGUFValueType.STRING:
            return self._string()
        if kind is GGUFValueType.ARRAY:
            return self._array(GGUFValueType(self._take("<I")), self._take("<Q"))
        scalar: int | float = struct.unpack_from(_SCALARS[kind], self._blob, self._position)[0]
        self._position += struct.calcsize(_SCALARS[kind])
        return scalar

    def _array(self, kind: GGUFValueType, count: int) -> list[str] | None:
        if kind is not GGUFValueType.STRING:
            self._position += count * struct.calcsize(_SCALARS[kind])
            return None
        if count <= _MAX_KEPT_ELEMENTS:
            return [self._string() for _ in range(count)]
        for _ in range(count):
            self._position += 8 + struct.unpack_from("<Q", self._blob, self._position)[0]
        return None

    def _string(self) -> str:
        length = self._take("<Q")
        end = self._position + length
        if end > len(self._blob):
            raise ValueError("it ends inside its header")
        text = self._blob[self._position : end].decode("utf-8", "replace")
        self._position = end
        return text

    def _take(self, layout: str) -> int:
        value: int = struct.unpack_from(layout, self._blob, self._position)[0]
        self._position += struct.calcsize(layout)
        return value


def _alignment(metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"an alignment of {alignment}")
    return alignment


def _quantization(metadata: dict[str, Value], weights: Counter[GGMLQuantizationType]) -> str:
    """As the file names its mixture of types, or else the type most weights have."""
    file_type = metadata.get("general.file_type")
    for known in LlamaFileType:
        if known == file_type:
            return known.name.removeprefix("MOSTLY_").removeprefix("ALL_")
    return weights.most_common(1)[0][0].name if weights else "unknown"
