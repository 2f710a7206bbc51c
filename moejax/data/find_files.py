"""Which files a path, a folder or a glob means: each real file once, however many links lead to it.

A glob means what it means to Python's ``glob``, with two differences. No folder is entered twice,
so that a link to a folder above it ends. A folder with brackets in its name may be written as it
is.
"""

import functools
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.config.paths import expand_home
from moejax.data.expand_glob import ANY_DEPTH, expand, split_glob
from moejax.data.text_format import HEAD, name_other_format


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file of text."""

    path: str
    name: str
    """Its path below the folder given, or below the fixed part of the glob: a folder that has moved
    keeps the names."""
    size: int
    """Bytes."""
    identity: object
    """The same for all paths of one file."""


@dataclass(frozen=True, kw_only=True)
class FoundFiles:
    """What was found."""

    files: tuple[FoundFile, ...]
    """Those that are not empty, sorted by path."""
    others: tuple[str, ...]
    """What lies in the folders given and is no text."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which files will do."""

    find_problem: Callable[[str], str | None]
    """Why a file will not do, in words that follow its name; None if it will."""
    may_lie_beside: Callable[[str], bool]
    """Whether a file that will not do may lie in a folder that is given: it is left out."""
    advice: str = ""
    """The last sentence about files that will not do."""


def find_text_problem(path: str) -> str | None:
    """Why a file is no text; None if it is one."""
    with open(path, "rb") as file:
        return name_other_format(file.read(HEAD))


TEXTS = Wanted(
    find_problem=find_text_problem,
    may_lie_beside=lambda path: True,
    advice=" Only texts will do: leave the others out.",
)


def find_files(flag: str, given: str | tuple[str, ...], wanted: Wanted = TEXTS) -> FoundFiles:
    """The files that the paths, folders and globs of a setting mean. Of a folder these are all in
    it that will do, at any depth, but for names that begin with a dot.

    Raises ``ConfigError``, naming the flag and the file, if one of them means no file, if a file
    cannot be read, if one that a path or a glob means is no text, or if all are empty.
    """
    found: dict[object, FoundFile] = {}
    others: dict[str, str] = {}
    for pattern in (given,) if isinstance(given, str) else given:
        start, is_folder, paths = _match(flag, pattern)
        once = _keep_one_path_each(paths)
        problems = {p: words for p in once.values() if (words := _find_problem(p, wanted))}
        fatal = {p: w for p, w in problems.items() if not is_folder or not wanted.may_lie_beside(p)}
        check(not fatal, f"{flag}: {_describe_problems(fatal, len(once), wanted)}")
        others |= problems
        for identity, path in once.items():
            if path not in problems:
                name = Path(os.path.relpath(path, start or ".")).as_posix()
                size = os.path.getsize(path)
                file = FoundFile(path=path, name=name, size=size, identity=identity)
                found.setdefault(identity, file)
    files = sorted((file for file in found.values() if file.size), key=lambda file: file.path)
    check(bool(found), f"{flag}: {_describe_problems(others, len(others), wanted)}")
    every = "the file" if len(found) == 1 else f"all {len(found):,} files"
    verb = "is" if len(found) == 1 else "are"
    check(bool(files), f"{flag}: {every} of {join_given(given)} {verb} empty.")
    return FoundFiles(files=tuple(files), others=tuple(sorted(others)))


def join_given(given: str | tuple[str, ...]) -> str:
    """What a setting names, in one line."""
    return given if isinstance(given, str) else ", ".join(given)


def count_words(count: int, what: str) -> str:
    """``1 file``, ``2,000 files``."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def _match(flag: str, pattern: str) -> tuple[str, bool, list[str]]:
    """Where the names of files begin, whether all of a folder is meant, and the paths of the
    files.
    """
    fixed, rest = split_glob(expand_home(flag, pattern))
    is_folder = not rest and os.path.isdir(fixed)
    matched = sorted(set(expand(fixed, [ANY_DEPTH] if is_folder else rest)))
    paths = [path for path in matched if not os.path.isdir(path)]
    if not paths:
        why = f"no file matches {pattern} in {os.getcwd()}. Quote the glob; ** spans folders."
        if matched:
            folders = count_words(len(matched), "folder")
            why = f"{pattern} matches {folders} and no file: write {pattern.rstrip('/')}/**/*, say."
        elif is_folder:
            why = f"there is no file in the folder {pattern}."
        elif "[" in pattern:
            why += " Brackets stand for one character out of several: write [[] for a bracket."
        raise ConfigError(f"{flag}: {why}")
    unreadable = [path for path in paths if not os.access(path, os.R_OK)]
    check(not unreadable, f"{flag}: cannot read {', '.join(unreadable[:3])}.")
    return (fixed if rest or is_folder else os.path.dirname(fixed)), is_folder, paths


def _keep_one_path_each(paths: list[str]) -> dict[object, str]:
    """One path of each real file; where there are several, one that is no link, and short."""
    find_real_folder = functools.cache(os.path.realpath)
    kept: dict[object, str] = {}
    for path in paths:
        facts, is_link = os.stat(path), os.path.islink(path)
        if facts.st_nlink > 1:
            identity: object = (facts.st_dev, facts.st_ino)
        elif is_link:
            identity = os.path.realpath(path)
        else:
            folder, name = os.path.split(path)
            identity = os.path.join(find_real_folder(folder), name)
        if identity not in kept or _rank(path) < _rank(kept[identity]):
            kept[identity] = path
    return kept


def _rank(path: str) -> tuple[bool, int, str]:
    return os.path.islink(path), path.count("/"), path


def _find_problem(path: str, wanted: Wanted) -> str | None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        return "is a pipe or a device: write what it gives to a file"
    return wanted.find_problem(path)


def _describe_problems(problems: dict[str, str], count: int, wanted: Wanted) -> str:
    """What is wrong with the first few files."""
    named = [f"{path} {words}" for path, words in list(problems.items())[:3]]
    more = "" if len(problems) == 1 else f" {len(problems):,} of {count_words(count, 'file')}."
    return f"{'; '.join(named)}.{more}{wanted.advice}"
