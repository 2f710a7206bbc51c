"""Runs that an earlier version trained in the directory of their study: they move to the store."""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from moejax.config.errors import ConfigError
from moejax.config.files import read_config_json
from moejax.config.json_files import MOST_TABLE_BYTES, read_json
from moejax.data.fingerprint import Mark
from moejax.lab.study.definition import Study
from moejax.lab.study.identity import name_training
from moejax.runs.directory_lock import DirectoryLock


def move_old_runs(study: Study, directory: Path, store: Path, say: Callable[[str], object]) -> None:
    """Move the runs that lie in a study's own directory to the store, each under the name of what
    it is, and leave a link in its place. One that cannot be read, or that the store has already,
    stays where it is. ``say`` prints what becomes of each. Raises ``RunError`` if one is being
    trained.
    """
    names = "|".join(map(re.escape, study.runs))
    for place in sorted(directory.glob("*")) if directory.is_dir() else []:
        known = re.fullmatch(rf"({names})(-seed\d+)?", place.name)
        if not known or place.is_symlink() or not (place / "config.json").is_file():
            continue
        try:
            config = read_config_json(place / "config.json")
            target = store / name_training(config, _read_marks(place))
        except ConfigError as error:
            say(f"{place} was trained by an earlier version and is not used: {error}")
            continue
        if target.exists():
            say(f"{place} is not used: the same training is in {target}.")
            continue
        lock = DirectoryLock(place)
        try:
            _move(place, target)
        finally:
            lock.release(refused=False, folders=[])
        say(f"{place} was trained by an earlier version: it lies in {target} now.")


def _move(place: Path, target: Path) -> None:
    """Move a directory, and leave a link; to another file system there is a link to it instead."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(place, target)
    except OSError:
        os.symlink(place.resolve(), target)
    else:
        with contextlib.suppress(OSError):
            os.symlink(os.path.relpath(target.resolve(), place.parent.resolve()), place)


def _read_marks(place: Path) -> list[Mark] | None:
    """The fingerprint of the data of a run, by its last checkpoint; None if there is none."""
    steps = [path for path in place.glob("checkpoints/[0-9]*") if path.name.isdigit()]
    for step in sorted(steps, key=lambda path: int(path.name), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            found = read_json(step / "extra" / "metadata", MOST_TABLE_BYTES)
            return [tuple(mark) for mark in found["marks"]] if found.get("marks") else None
    return None
