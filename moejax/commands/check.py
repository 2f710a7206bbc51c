"""`moejax check`: is what lies on disk still what was written, and what is a released model?"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from moejax.commands.check_released import check_released, describe_released
from moejax.config.checks import check
from moejax.config.errors import CheckpointError, RunError
from moejax.config.json_files import MOST_TABLE_BYTES, read_json
from moejax.config.paths import expand_home
from moejax.hf.files import is_checkpoint
from moejax.hf.peft import SETTINGS, is_adapter, read_settings
from moejax.inference.imported import ARRAYS, is_imported
from moejax.inference.quantised_model import ARRAYS as QUANTISED
from moejax.inference.trained_run import is_run
from moejax.runs.checksums import FILE, find_damage
from moejax.runs.quantised_mark import describe_mark, is_quantised_model
from moejax.runs.records import read_run


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """What is looked at."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directory of a run, of a model that `moejax import` or `moejax quantise` wrote, of a
    checkpoint in Hugging Face's format, or of adapters in PEFT's."""
    json: bool = False
    """Print what was found as JSON."""


def check_directory(settings: CheckSettings) -> None:
    """Compare every file of every checkpoint with its checksum, and say what differs. Exits with 1
    if anything is damaged. Of a checkpoint in Hugging Face's format, say what it is and what can be
    done with it. Raises ``CheckpointError`` with the reason if it cannot be imported.
    """
    root = Path(expand_home("DIR", str(settings.path)))
    if is_adapter(root) and not is_run(root):
        print_found(describe_adapters(root), settings.json)
        return
    if not is_imported(root) and not is_run(root) and is_checkpoint(root):
        facts = check_released(root)
        print_found(facts if settings.json else describe_released(facts), settings.json)
        if facts["refused"] is not None:
            raise CheckpointError(facts["refused"])
        return
    found = {place: describe_folder(root / place) for place in list_places(root)}
    if is_quantised_model(root):
        found["weights"] = f"quantised: {describe_mark(root)}"
    elif not is_imported(root) and (damage := read_run(root).damage):
        found["records"] = f"damaged: {'; '.join(damage)}"
    print_found(found, settings.json)
    if any(words.startswith("damaged") for words in found.values()):
        raise SystemExit(1)


def describe_adapters(root: Path) -> dict[str, Any]:
    """What is said of adapters in PEFT's format. Raises ``CheckpointError`` for other kinds."""
    rank, scale = read_settings(root)
    return {
        "adapters": f"in PEFT's format, of rank {rank}, multiplied by {scale:g}",
        "base": str(read_json(root / SETTINGS).get("base_model_name_or_path")),
        "next": f"moejax merge {shlex.quote(str(root))} NEW --base MODEL",
    }


def print_found(found: dict[str, Any], as_json: bool) -> None:
    """Rows of a name and words, or JSON."""
    if as_json:
        print(json.dumps(found, indent=2), flush=True)
        return
    width = max(map(len, found))
    print("\n".join(f"{place:{width}}  {words}" for place, words in found.items()), flush=True)


def list_places(path: Path) -> list[str]:
    """The folders with checksums inside a directory, checkpoints by their steps."""
    if is_quantised_model(path):
        return [".", QUANTISED]
    if is_imported(path):
        return [".", ARRAYS]
    steps = [p for p in path.glob("checkpoints/[0-9]*") if p.name.isdigit() and p.is_dir()]
    check(
        bool(steps),
        f"{path} has no checkpoint: give the directory of a run (with checkpoints/), of a model"
        f" that `moejax import` wrote (with {ARRAYS}/), or of one in Hugging Face's format"
        f" (config.json with model_type, and safetensors).",
    )
    return [f"checkpoints/{step.name}" for step in sorted(steps, key=lambda p: int(p.name))]


def describe_folder(folder: Path) -> str:
    """What is found in a folder, in words. Raises ``RunError`` if it cannot be read."""
    try:
        damage = find_damage(folder)
        if damage is not None:
            return f"damaged: {damage}"
        if not (folder / FILE).is_file():
            return "not known: it was written without checksums"
        return f"as written: {len(read_json(folder / FILE, MOST_TABLE_BYTES)['files'])} files"
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror}.") from error
