"""What a run keeps of the files that it began with, so that it can be opened from any folder."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from moejax.config import json_files
from moejax.config.config import Config
from moejax.config.data import DOCSTRINGS, GIVEN, DataConfig, names_stdlib, names_tfds
from moejax.config.json_files import MOST_TABLE_BYTES
from moejax.config.mixture import NONE, PATHS
from moejax.config.own_code import FOLDER, find_router_file
from moejax.config.paths import expand_home
from moejax.data.chat.choose import KEPT, list_models
from moejax.data.chat.find_template import FILE, SETTINGS, find_template, is_file_name
from moejax.data.expand_glob import expand, split_glob
from moejax.data.text_edges import read_edges
from moejax.data.tokenizer import HuggingFaceTokenizer, Tokenizer
from moejax.hf.files import read_json
from moejax.hf.writing import OTHER_FILES
from moejax.inference.imported import ORIGINAL
from moejax.runs.run_directory import RunDirectory
from moejax.runtime.atomic_files import write_file, write_json, write_text

BESIDE = (*OTHER_FILES, "config.json", ORIGINAL)
"""Files beside a tokenizer that say how it is used."""
EDGES = "edges.json"
"""In the run's copy: with which tokens its texts begin and end."""


def keep_files(run: RunDirectory, config: Config, tokenizer: Tokenizer | None) -> None:
    """Copy the file that has a router of one's own, the tokenizer, and the ``config.json`` of the
    released model that the run began from, into the run directory, in the process that owns it.
    """
    if not run.owner:
        return
    own = find_router_file(config.model.moe.router)
    if own is not None and own.is_file():
        (run.path / FOLDER).mkdir(exist_ok=True)
        _copy(own, run.path / FOLDER / own.name)
    if tokenizer is None:
        return
    _keep_tokenizer(run, config, tokenizer)
    if config.data.used_template is not None:
        _keep_template(run, config, tokenizer, config.data.used_template)
    if config.run.init_from is not None:
        began = Path(expand_home("--run.init-from", config.run.init_from))
        for other in (ORIGINAL, "config.json"):
            if (began / other).is_file() and "model_type" in (fields := read_json(began / other)):
                write_json(run.path / ORIGINAL, fields)
                break


def _keep_tokenizer(run: RunDirectory, config: Config, tokenizer: Tokenizer) -> None:
    name = config.data.tokenizer
    place = Path(expand_home("--data.tokenizer", name))
    if name != "bytes" and place.exists():
        file = place / "tokenizer.json" if place.is_dir() else place
        run.tokenizer.mkdir(exist_ok=True)
        _copy(file, run.tokenizer / "tokenizer.json")
        write_json(run.tokenizer / EDGES, tokenizer.edges.to_json())
        # A file of another name may stand beside those of another tokenizer.
        for other in BESIDE if file.name == "tokenizer.json" else ():
            if (file.parent / other).is_file():
                _copy(file.parent / other, run.tokenizer / other)


def _keep_template(run: RunDirectory, config: Config, tokenizer: Tokenizer, given: str) -> None:
    """Keep how conversations are written: the template, and the names that it prints."""
    template = find_template(given, tokenizer, list_models(config, run.tokenizer))
    run.tokenizer.mkdir(exist_ok=True)
    write_text(run.tokenizer / FILE, template.source)
    if not (run.tokenizer / SETTINGS).is_file():
        write_json(run.tokenizer / SETTINGS, template.names)


def copy_template(path: Path, target: Path) -> None:
    """Copy the chat template of the run in ``path``, if it has one, into the directory of a model
    that is made of the run.
    """
    kept = path / KEPT / FILE
    if kept.is_file():
        _copy(kept, target / FILE)


def adopt_edges(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    """A run's tokenizer, with texts that begin and end as the run in ``path`` has learned them, if
    it has saved anything. Raises ``ConfigError`` for a damaged file.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer) and any((path / "checkpoints").glob("*")):
        file = path / KEPT / EDGES
        tokenizer.edges = read_edges(file) if file.is_file() else tokenizer.edges_of_older_runs
    return tokenizer


def _copy(source: Path, target: Path) -> None:
    if not target.exists() or source.read_bytes() != target.read_bytes():
        with open(source, "rb") as opened:
            write_file(target, lambda made: shutil.copyfileobj(opened, made))


def find_tokenizer(path: Path, config: Config) -> str:
    """The name of the tokenizer of the run in ``path``: its copy, or, in older runs, where it was
    when the run began.
    """
    kept = path / KEPT
    if config.data.tokenizer != "bytes" and (kept / "tokenizer.json").is_file():
        return str(kept)
    return expand_home("--data.tokenizer", config.data.tokenizer)


def find_base(path: Path, config: Config) -> Path:
    """Where the model is that the adapters of the run in ``path`` belong to; a relative place is
    taken from the folder in which the run was trained, if there is nothing here.
    """
    assert config.run.init_from is not None  # as in every run with adapters
    place = Path(expand_home("--run.init-from", config.run.init_from))
    there = Path(_find_folder(path), place)
    return there if there.is_dir() and not place.is_dir() else place


def _find_folder(path: Path) -> str:
    """The folder in which a run was last trained; empty if it is not known."""
    try:
        folder = json_files.read_json(path / "summary.json", MOST_TABLE_BYTES)["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # an older run
    return folder if isinstance(folder, str) else ""


def _adopt_template(data: DataConfig, template: str) -> DataConfig:
    """The settings with this chat template where they have any."""
    changes: dict[str, Any] = {}
    if data.sources:
        changes["mixture"] = tuple(
            one if one.chat_template in (None, NONE) else replace(one, chat_template=template)
            for one in data.sources
        )
    if data.chat_template is not None:
        changes["chat_template"] = template
    return replace(data, **changes)


def find_text(path: Path, data: DataConfig) -> DataConfig:
    """The settings of the text of the run in ``path``, where relative paths are taken from the
    folder in which it was trained, if they lead to anything there; the chat template is its own
    copy.
    """
    kept = path / KEPT / FILE
    if kept.is_file():
        data = _adopt_template(data, str(kept))
    folder = _find_folder(path)
    if not folder or folder == os.getcwd():
        return data

    def anchor(given: str) -> str:
        if names_tfds(given) or names_stdlib(given) or given == DOCSTRINGS:
            return given
        there = os.path.join(folder, expand_home("--data.files", given))
        return there if any(expand(*split_glob(there))) else given

    def anchor_all(settings: Any, *names: str) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        template = settings.chat_template
        own = template is not None and is_file_name(template)
        for name in (*names, *["chat_template"] * own):
            given = getattr(settings, name)
            if isinstance(given, str):
                changes[name] = anchor(given)
            elif given is not None:
                changes[name] = tuple(map(anchor, given))
        return changes

    changes = anchor_all(data, *GIVEN, "directory")
    if data.sources:
        sources = (replace(one, **anchor_all(one, *PATHS)) for one in data.sources)
        changes["mixture"] = tuple(sources)
    return replace(data, **changes)
