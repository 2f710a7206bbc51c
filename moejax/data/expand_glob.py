"""The paths that a glob matches, with no folder entered twice."""

import fnmatch
import glob
import os
from collections import deque
from collections.abc import Iterator

ANY_DEPTH = "**"


def split_glob(pattern: str) -> tuple[str, list[str]]:
    """The folders of a glob before its first wildcard, as a path, and the parts that follow.

    A part whose only wildcards are brackets is no wildcard where that very name exists.
    """
    parts = pattern.split("/")
    fixed = 0
    while fixed < len(parts):
        part, path = parts[fixed], "/".join(parts[: fixed + 1])
        brackets_alone = "*" not in part and "?" not in part
        if glob.has_magic(part) and not (brackets_alone and os.path.lexists(path)):
            break
        fixed += 1
    root = "/" if pattern.startswith("/") else ""
    return "/".join(parts[:fixed]) or root, parts[fixed:]


def expand(path: str, parts: list[str]) -> Iterator[str]:
    """The files and folders at ``path`` that the ``parts`` of a glob lead to; some may come twice.
    ``**`` alone spans any number of folders, and as the last part the files in all of them.
    """
    if not parts:
        if os.path.lexists(path):
            yield path
        return
    first, rest = parts[0], parts[1:]
    if first == ANY_DEPTH:
        while rest[:1] == [ANY_DEPTH]:
            rest = rest[1:]
        for folder in walk_folders(path):
            yield from expand(folder, rest or ["*"])
    elif not glob.has_magic(first):
        yield from expand(os.path.join(path, first), rest)
    else:
        for name in fnmatch.filter(_list_names(path), first):
            if first.startswith(".") or not name.startswith("."):
                yield from expand(os.path.join(path, name), rest)


def walk_folders(top: str) -> Iterator[str]:
    """``top`` and all folders below it, each real one once; those whose names begin with a dot are
    left out. Links are followed last, so that a folder has its real path where it has one.
    """
    entered: set[tuple[int, int]] = set()
    folders, links = [top], deque[str]()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        try:
            facts = os.stat(folder or ".")
            entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name, reverse=True)
        except OSError:
            continue
        if (facts.st_dev, facts.st_ino) in entered:
            continue
        entered.add((facts.st_dev, facts.st_ino))
        yield folder
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                (links if entry.is_symlink() else folders).append(os.path.join(folder, entry.name))


def _list_names(folder: str) -> list[str]:
    """The names in a folder, sorted; none if it is no folder, or cannot be read."""
    try:
        return sorted(os.listdir(folder or "."))
    except OSError:
        return []
