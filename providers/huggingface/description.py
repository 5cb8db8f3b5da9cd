"""What a model's own files say about it, read without loading it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from providers.base import ModelCapabilities, ModelMetadata
from providers.huggingface.damage import DamagedFile
from providers.huggingface.gguf_file import read_gguf_header
from providers.huggingface.model_card import read_model_card
from providers.huggingface.safetensors_file import read_weight_counts

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")
_REPLY_ARCHITECTURES = ("CausalLM", "LMHead", "ConditionalGeneration")


_Shape = TypeVar("_Shape")


class NoChatModel(Exception):
    """The files are a model, but not one that writes replies (an embedding model, say)."""


@dataclass(frozen=True, slots=True)
class Description:
    capabilities: ModelCapabilities = field(default_factory=lambda: ModelCapabilities(vision=False))
    metadata: ModelMetadata = field(default_factory=ModelMetadata)


class _Text(msgspec.Struct, frozen=True):
    """The window under the names that configurations have for it."""

    max_position_embeddings: int | None = None
    n_positions: int | None = None
    max_seq_len: int | None = None
    seq_length: int | None = None

    @property
    def context_tokens(self) -> int | None:
        return self.max_position_embeddings or self.n_positions or self.max_seq_len or self.seq_length


class _Quantization(msgspec.Struct, frozen=True):
    quant_method: str | None = None


class _Config(_Text, frozen=True):
    model_type: str | None = None
    architectures: list[str] | None = None
    text_config: _Text | None = None
    quantization_config: _Quantization | None = None


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


def describe_safetensors(folder: Path) -> Description:
    """Raises DamagedFile, NoChatModel and OSError."""
    config = _decode(folder / "config.json", _Config)
    if config.architectures and not any(
        part in architecture for architecture in config.architectures for part in _REPLY_ARCHITECTURES
    ):
        raise NoChatModel(f"{', '.join(config.architectures)} writes no replies")
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise DamagedFile("the tokenizer is missing (tokenizer.json)")
    weights = _weight_files(folder)
    counts = sum((read_weight_counts(path) for path in weights), Counter[str]())
    method = config.quantization_config.quant_method if config.quantization_config else None
    card = read_model_card(folder)
    return Description(
        ModelCapabilities(
            vision=False,
            max_context_tokens=(config.text_config or config).context_tokens,
            languages=card.languages,
        ),
        ModelMetadata(
            size_bytes=sum(path.stat().st_size for path in weights),
            parameters=counts.total(),
            architecture=config.model_type,
            quantization=method or (counts.most_common(1)[0][0] if counts else None),
            license=card.named_license,
            updated_at=_updated_at(weights),
        ),
    )


def describe_gguf(path: Path) -> Description:
    """Raises DamagedFile, NoChatModel and OSError."""
    header = read_gguf_header(path)
    architecture = header.text("general.architecture")
    if architecture == "clip":
        raise NoChatModel("a vision projector belongs to another model")
    if (header.integer("split.count") or 1) > 1:
        raise DamagedFile(f"{path.name} is one part of several: merge them with llama.cpp's gguf-split")
    languages = header.metadata.get("general.languages")
    card = read_model_card(path.parent)
    return Description(
        ModelCapabilities(
            vision=False,
            max_context_tokens=header.integer(f"{architecture}.context_length"),
            languages=tuple(languages) if isinstance(languages, list) else card.languages,
        ),
        ModelMetadata(
            size_bytes=path.stat().st_size,
            parameters=header.parameters,
            architecture=architecture,
            quantization=header.quantization,
            license=header.text("general.license") or card.named_license,
            updated_at=_updated_at([path]),
        ),
    )


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load, and no others that lie beside them."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise DamagedFile("the weights are missing (model.safetensors)")
    names = sorted(set(_decode(index, _Index).weight_map.values()))
    missing = [name for name in names if Path(name).name != name or not (folder / name).exists()]
    if missing:
        raise DamagedFile(f"weights are missing: {', '.join(missing[:3])}")
    return [folder / name for name in names]


def _updated_at(files: Iterable[Path]) -> datetime:
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in files), UTC)


def _decode(path: Path, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(path.read_bytes(), type=shape)
    except msgspec.MsgspecError as error:
        raise DamagedFile(f"{path.name} is damaged ({error})") from error
