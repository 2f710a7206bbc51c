"""A run is a directory: settings, metrics, loads, checkpoints, report. One training at a time."""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moejax.config.config import Config
from moejax.config.errors import ConfigError, RunError
from moejax.config.files import read_config_json, to_dict
from moejax.config.idle import differences_that_matter
from moejax.config.json_files import MOST_TABLE_BYTES, read_json
from moejax.config.mixture import explain_epochs, explain_mixture
from moejax.config.paths import expand_home
from moejax.data.tokenizer import load_tokenizer
from moejax.runs.array_files import list_steps, read_arrays, write_arrays
from moejax.runs.checksums import CHECKSUM, sum_json
from moejax.runs.directory_lock import DirectoryLock
from moejax.runs.held_out_choices import pack, read_chosen
from moejax.runs.metric_lines import append_line, keep_until, read_lines, select_split
from moejax.runs.quantised_mark import refuse_quantised
from moejax.runs.run_layout import (
    CHOICES,
    CLASSES,
    FOLDERS,
    LOAD,
    MAY_CHANGE,
    OF_MODELS,
    PROFILE,
)
from moejax.runs.same_model import is_same_model
from moejax.runtime.atomic_files import write_json, write_text


def _warn_of_damage(file: Path, content: object) -> None:
    """Say that a file could not be read: figures that are compared with it are left out."""
    if content is None:
        warnings.warn(
            f"{file} is damaged: it is left out of alarms, and of what is compared with it.",
            stacklevel=3,
        )


def _owner_only(method: Callable[..., None]) -> Callable[..., None]:
    """In a process that does not own the directory, do nothing."""

    @functools.wraps(method)
    def run_if_owner(self: "RunDirectory", *args: Any, **kwargs: Any) -> None:
        if self.owner:
            method(self, *args, **kwargs)

    return run_if_owner


class RunDirectory:
    """The files of a run, under a lock: until the end of the ``with``, or of the process.

    Of several processes that train together one is the ``owner``; the others write nothing here,
    and must not read what the owner may be writing.
    """

    def __init__(self, path: Path, owner: bool = True) -> None:
        """Make the directory and lock it; ``RunError`` if it cannot be written or is in use."""
        self.path = path
        self.owner = owner
        if owner:
            self._lock = DirectoryLock(path)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.owner:
            self._lock.release(refused=kind is not None, folders=[self.checkpoints])

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line, in the order of steps."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Where Orbax keeps the checkpoints."""
        return self.path / "checkpoints"

    @property
    def profile(self) -> Path:
        """Traces of steps, and the table of their dearest operations."""
        return self.path / PROFILE

    @property
    def tokenizer(self) -> Path:
        """A copy of the tokenizer's files, if it is not that of bytes."""
        return self.path / "tokenizer"

    @property
    def report(self) -> Path:
        """The report page; there once the run has finished."""
        return self.path / "report.html"

    @_owner_only
    def check(self, config: Config) -> None:
        """Refuse a config that would make another run of the one that has begun here."""
        refuse_quantised(self.path, "a run in its directory")
        file = self.path / "config.json"
        begun = self.last_metrics("train") or any(self.checkpoints.glob("*"))
        if not begun:
            self._refuse_model()
        if not begun or not file.exists():
            return
        try:
            old = read_config_json(file)
        except ConfigError as error:
            raise RunError(
                f"{error} Move it away, and the same command resumes: the checkpoints have the"
                f" settings, too."
            ) from error
        self.compare(old, config)

    def _refuse_model(self) -> None:
        """A run that begins would write over the ``config.json`` of a model that is kept here."""
        there = [path.name for pattern in OF_MODELS for path in self.path.glob(pattern)]
        if there:
            raise RunError(
                f"--run.directory {self.path} holds a model ({min(there)}), whose config.json a run"
                f" would write over: give another one. --run.init-from {self.path} begins from the"
                f" model."
            )

    def compare(self, old: Config, config: Config) -> None:
        """Raise ``RunError`` for settings other than the ``old`` ones of this run, but for those
        that may change.
        """
        changed = differences_that_matter(old, config)
        fatal = {name: pair for name, pair in changed.items() if name not in MAY_CHANGE}
        if "data.tokenizer" in fatal and self._is_same_tokenizer(*fatal["data.tokenizer"]):
            del fatal["data.tokenizer"]
        if "run.init_from" in fatal and self._is_same_beginning(*fatal["run.init_from"]):
            del fatal["run.init_from"]
        before, now = old.data.sources, config.data.sources
        said = []
        if before and now:
            fatal.pop("data.mixture", None)
            said = [
                explain_mixture(before, now),
                explain_epochs(now, old.run.steps, config.run.steps),
            ]
        lines = [f"  {name}: {old!r} -> {new!r}" for name, (old, new) in fatal.items()]
        lines += [words for words in said if words]
        if lines:
            raise RunError(
                f"{self.path} holds a run with other settings:\n" + "\n".join(lines) + "\n"
                "Give the old values to resume it, or another --run.directory to start a new one."
            )

    def _is_same_tokenizer(self, old: str, new: str) -> bool:
        """Whether two names of tokenizers mean the same one, by its content."""
        old = str(self.tokenizer) if self.tokenizer.is_dir() else old
        try:
            return load_tokenizer(old).fingerprint == load_tokenizer(new).fingerprint
        except ConfigError:
            return False

    def _is_same_beginning(self, old: str | None, new: str | None) -> bool:
        """Whether two values of ``run.init_from`` lead to the same model, by its place or its
        content. A relative one may be meant from the folder in which the run was trained.
        """
        if old is None or new is None:
            return False
        before, now = (Path(expand_home("--run.init-from", name)) for name in (old, new))
        return any(is_same_model(Path(folder, before), now) for folder in ("", self._folder()))

    def _folder(self) -> str:
        """The folder in which the run was last trained, if it is known."""
        try:
            folder = read_json(self.path / "summary.json", MOST_TABLE_BYTES)["folder"]
        except (OSError, ValueError, KeyError, TypeError):
            return ""  # an older run
        return folder if isinstance(folder, str) else ""

    @_owner_only
    def write_config(self, config: Config) -> None:
        """Write ``config.json``."""
        write_json(self.path / "config.json", to_dict(config))

    @_owner_only
    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json``, with a checksum of what it says."""
        write_json(self.path / "summary.json", summary | {CHECKSUM: sum_json(summary)})

    @_owner_only
    def write_sample(self, text: str | None) -> None:
        """Write ``sample.txt``; without text, take an earlier one away."""
        file = self.path / "sample.txt"
        file.unlink(missing_ok=True)
        if text is not None:
            write_text(file, text)

    @_owner_only
    def remove_report(self) -> None:
        """Take the report away: it says that all steps are done."""
        self.report.unlink(missing_ok=True)

    @_owner_only
    def keep_metrics_until(self, step: int) -> None:
        """Drop the lines after ``step``: a resumed run writes them again. A cut last line goes,
        too.
        """
        for folder in FOLDERS:
            for file in list_steps(self.path / folder):
                if int(file.stem) > step:
                    file.unlink()
        keep_until(self.metrics_file, step)

    @_owner_only
    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; numbers that are not finite become null."""
        append_line(self.metrics_file, line)

    def metrics(self, split: str) -> list[dict[str, Any]]:
        """All lines of a split (`train`, `validation`)."""
        return select_split(read_lines(self.metrics_file)[0], split)

    def last_metrics(self, split: str) -> dict[str, Any] | None:
        """The last line of a split, or None."""
        return next(reversed(self.metrics(split)), None)

    @_owner_only
    def write_load(self, step: int, **arrays: np.ndarray) -> None:
        """Write ``load/STEP.npz``, the arrays of a logging interval."""
        write_arrays(self.path / LOAD, step, arrays)

    def last_loads(self, count: int) -> list[dict[str, np.ndarray]]:
        """The arrays of the last intervals, in order; of damaged files there is a warning."""
        files = list_steps(self.path / LOAD)[-count:]
        found = [(file, read_arrays(file)) for file in files]
        for file, arrays in found:
            _warn_of_damage(file, arrays)
        return [arrays for _, arrays in found if arrays is not None]

    @_owner_only
    def write_choices(self, step: int, chosen_LBNE: np.ndarray, folder: str = CHOICES) -> None:
        """Write ``choices/STEP.npz``: which experts the first tokens of an evaluation asked for. In
        ``part_choices/`` are those of evaluations of a part.
        """
        write_arrays(self.path / folder, step, pack(chosen_LBNE))

    def last_choices(self, folder: str = CHOICES) -> np.ndarray | None:
        """``chosen_LBNE`` of the last evaluation, or None."""
        files = list_steps(self.path / folder)
        found = read_chosen(files[-1]) if files else None
        if files:
            _warn_of_damage(files[-1], found)
        return found

    @_owner_only
    def write_classes(self, step: int, **counts: np.ndarray) -> None:
        """Write ``classes/STEP.npz``: how an evaluation sorted images, and which experts saw
        them.
        """
        write_arrays(self.path / CLASSES, step, counts)
