"""How much memory there is for this server, and how much of it a process takes."""

from pathlib import Path

import psutil

MIB = 1024 * 1024

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def machine_bytes() -> int:
    """The machine's memory, or what the container or service that this process runs in may have of it."""
    total = int(psutil.virtual_memory().total)
    limit = cgroup_limit_bytes(_OWN_CGROUPS, _CGROUPS)
    return total if limit is None else min(total, limit)


def cgroup_limit_bytes(own_cgroups: Path, root: Path) -> int | None:
    """The lowest limit on a process's way up to the ``root`` of the cgroups, of version 1 or 2; ``None``
    where there is none. A container may see its own groups at the root, whatever they are called outside."""
    try:
        lines = own_cgroups.read_text().splitlines()
    except OSError:  # no Linux
        return None
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / path.removeprefix("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                limits += _read_limit(folder / name)
    return min(limits, default=None)


def process_bytes(pid: int) -> int:
    """What the process takes, with its share of what it has in common with others (PSS) where the system
    says that; 0 if it is gone. Takes milliseconds for each gigabyte: call it from a thread."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:  # another system, or it has just ended
        pass
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _read_limit(path: Path) -> list[int]:
    try:
        return [int(path.read_text())]
    except (OSError, ValueError):  # out of sight from in here, or "max"
        return []
