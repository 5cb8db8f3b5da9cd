"""Which models lie in the models path, and under which names they are asked for.

A name is a key of the scan's result and never becomes part of a path, so no name leads out of the models
path. A symbolic link that does is not followed: a downloaded model could otherwise show any file of this
machine to its readers, as its chat template.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from providers.base import ModelInfo, ModelState
from providers.huggingface.damage import DamagedFile
from providers.huggingface.description import (
    Description,
    NoChatModel,
    describe_gguf,
    describe_safetensors,
)

_MAX_DEPTH = 2  # org/name

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One model on disk: a safetensors ``folder``, or the ``gguf_file`` in it. ``problem`` says why it
    cannot be loaded."""

    folder: Path
    gguf_file: str | None
    info: ModelInfo
    problem: str | None = None

    @property
    def name(self) -> str:
        return self.info.name


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Files that look like a model. ``signature`` changes whenever one of them does."""

    name: str
    folder: Path
    gguf_file: str | None
    signature: tuple[tuple[str, int, int], ...]

    @property
    def path(self) -> Path:
        return self.folder / self.gguf_file if self.gguf_file else self.folder


class Catalog:
    """Remembers what it read of files that have not changed since. Blocks: call it from a thread."""

    def __init__(self, models_path: Path) -> None:
        self._root = models_path
        self._described: dict[_Candidate, ModelFiles | None] = {}
        self._warnings: frozenset[str] = frozenset()

    def scan(self) -> dict[str, ModelFiles]:
        """Every model by name, damaged ones with their problem. Raises OSError if the path is unreadable."""
        root = self._root.resolve()
        warnings: set[str] = set()
        described: dict[_Candidate, ModelFiles | None] = {}
        models: dict[str, ModelFiles] = {}
        for candidate in _candidates(root, root, 0, warnings):
            known = candidate in self._described
            files = self._described[candidate] if known else _read(root, candidate)
            described[candidate] = files
            if files is None:
                continue
            if candidate.name in models:
                taken_by = models[candidate.name].info.source
                warnings.add(f"{candidate.path} is left out: its name is taken by {taken_by}")
                continue
            if files.problem:
                warnings.add(f"The model {candidate.name} cannot be used: {files.problem}")
            models[candidate.name] = files
        for warning in sorted(warnings - self._warnings):
            logger.warning("%s", warning)
        self._described, self._warnings = described, frozenset(warnings)
        return models


def _candidates(root: Path, folder: Path, depth: int, warnings: set[str]) -> Iterator[_Candidate]:
    """Whatever looks like a model in ``folder`` and below, in the order of the names."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        if folder == root:
            raise
        warnings.add(f"The folder {folder} cannot be read: {error.strerror}")
        return
    files = [path for path in entries if path.is_file()]
    is_safetensors = depth > 0 and _has_safetensors(files)
    if is_safetensors:
        yield _Candidate(_name(root, folder), folder, None, _signature(files))
    ggufs = [path for path in files if path.suffix == ".gguf"]
    for path in ggufs:
        names_its_folder = len(ggufs) == 1 and depth > 0 and not is_safetensors
        named = folder if names_its_folder else path.with_suffix("")
        yield _Candidate(_name(root, named), folder, path.name, _signature([path]))
    if depth == _MAX_DEPTH or is_safetensors:
        return
    for path in entries:
        if not path.is_dir():
            continue
        if path.resolve().is_relative_to(root):
            yield from _candidates(root, path, depth + 1, warnings)
        else:
            warnings.add(f"{path} is a link out of the models path and not followed")


def _read(root: Path, candidate: _Candidate) -> ModelFiles | None:
    """``None`` if it is no chat model after all."""
    problem = None
    description = Description()
    try:
        _refuse_links_out(root, candidate)
        description = (
            describe_gguf(candidate.path) if candidate.gguf_file else describe_safetensors(candidate.folder)
        )
    except NoChatModel as reason:
        logger.info("%s is not listed: %s", candidate.path, reason)
        return None
    except DamagedFile as error:
        problem = str(error)
    except OSError as error:
        problem = f"{Path(error.filename or candidate.path).name} cannot be read ({error.strerror})"
    info = ModelInfo(
        name=candidate.name,
        source=str(candidate.path),
        display_name=candidate.name.rpartition("/")[2],
        description=problem,
        capabilities=description.capabilities,
        metadata=description.metadata,
    )
    if problem:
        info = replace(info, state=ModelState.FAILED)
    return ModelFiles(candidate.folder, candidate.gguf_file, info, problem)


def _refuse_links_out(root: Path, candidate: _Candidate) -> None:
    used = [candidate.path] if candidate.gguf_file else candidate.folder.rglob("*")
    for path in used:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise DamagedFile(f"{path.name} is a link out of the models path; copy or hard-link the file")


def _has_safetensors(files: list[Path]) -> bool:
    """Whether the folder means to be a model; GGUF repositories often carry the original's config.json."""
    suffixes = {path.suffix for path in files}
    has_config = any(path.name == "config.json" for path in files)
    return ".safetensors" in suffixes or (has_config and ".gguf" not in suffixes)


def _signature(files: list[Path]) -> tuple[tuple[str, int, int], ...]:
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def _name(root: Path, path: Path) -> str:
    """Always storable text: bytes that are no UTF-8 become question marks."""
    return path.relative_to(root).as_posix().encode("utf-8", "replace").decode("utf-8")
