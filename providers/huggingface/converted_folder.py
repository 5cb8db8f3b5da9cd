"""Where the converted weights of a GGUF file are kept."""

import hashlib
import os
from pathlib import Path

_FORMAT = 1  # part of the name: raise it when the same file would be converted otherwise


def converted_folder(gguf: Path, cache_dir: Path, precision: str) -> Path:
    """There only once the conversion is complete. Beside it are those of the same file in other precisions
    or as it was before it changed. Raises OSError if there is no such file."""
    status = gguf.stat()
    kept = cache_dir / "converted" / hashlib.sha256(os.fsencode(gguf.resolve())).hexdigest()[:16]
    return kept / f"{status.st_size}-{status.st_mtime_ns}-{precision}-{_FORMAT}"


def same_file(folder: Path, other: Path) -> bool:
    """Whether both were converted from the same file, unchanged."""
    return folder.name.split("-")[:2] == other.name.split("-")[:2]
