"""How much memory this machine has, and how much of it is free; of a container, its own."""

from pathlib import Path

MACHINE = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows control groups: of version 2, and of version 1 under ``memory``."""
_UNLIMITED = 2**62
"""Version 1 writes a number beyond this where there is no limit."""


def read_host_memory() -> float | None:
    """Bytes that this machine, or this container, can give: its memory and its swap space. None
    where it is not known: elsewhere than on Linux, swap space grows as it is needed.
    """
    fields = _read_fields(MACHINE, 1024)
    if not {"MemTotal", "SwapTotal"} <= fields.keys():
        return None
    limits = [limit for limit, _ in _read_groups()]
    return float(min([fields["MemTotal"], *limits]) + fields["SwapTotal"])


def read_free_memory() -> float | None:
    """Bytes that a program can have more without taking them from another: what Linux calls
    available, without swap space, and in a container no more than its limit leaves. None where it
    is not known.
    """
    fields = _read_fields(MACHINE, 1024)
    if "MemAvailable" not in fields:
        return None
    left = [max(0, limit - used) for limit, used in _read_groups()]
    return float(min([fields["MemAvailable"], *left]))


def _read_groups() -> list[tuple[int, int]]:
    """For each control group with a limit that this process is in: the limit, and the bytes in use
    that cannot be dropped at once, as files' old contents can.
    """
    found = []
    for folder in _find_groups():
        for limit, used, dropped in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most = _read_number(folder / limit)
            if most is not None and most < _UNLIMITED:
                stat = _read_fields(folder / "memory.stat", 1)
                in_use = (_read_number(folder / used) or 0) - stat.get(dropped, 0)
                found.append((most, max(0, in_use)))
    return found


def _find_groups() -> list[Path]:
    """The folders of this process's control groups and of all around them. In a container the path
    may be one of the world outside: then the outermost folder is the container's.
    """
    roots = {"": GROUPS, "memory": GROUPS / "memory"}
    folders = set(roots.values())
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        for kind in set(kinds.split(",")) & roots.keys():
            own = Path(path.lstrip("/"))
            folders |= {roots[kind] / one for one in (own, *own.parents) if ".." not in one.parts}
    return sorted(folders)


def _read_number(file: Path) -> int | None:
    """None without the file, or where it holds a word: "max", say."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _read_fields(file: Path, unit: int) -> dict[str, int]:
    """Lines with a name and a number of so many bytes."""
    found = {}
    try:
        for line in file.read_text(encoding="ascii").splitlines():
            name, number, *_ = line.split()
            found[name.removesuffix(":")] = unit * int(number)
    except (OSError, ValueError):
        pass
    return found
