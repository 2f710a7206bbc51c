"""The ``config.json`` of the family that a model, or the one that it began from, came with."""

from pathlib import Path
from typing import Any

from moejax.config.config import Config
from moejax.config.files import read_config_json
from moejax.config.paths import expand_home
from moejax.hf.configs import write_config
from moejax.hf.files import is_checkpoint, read_json
from moejax.inference import imported
from moejax.inference.open_model import OpenModel


def find_original(source: Path) -> dict[str, Any] | None:
    """That of a directory that holds a model; None if it came with none."""
    if is_checkpoint(source):
        return read_json(source / "config.json")
    if (source / imported.ORIGINAL).is_file() or imported.is_imported(source):
        return imported.read_original(source)
    run: Config = read_config_json(source / "config.json")
    if run.run.init_from is None:
        return None
    # Older runs have no copy.
    began = Path(expand_home("--run.init-from", run.run.init_from))
    if is_checkpoint(began):
        return read_json(began / "config.json")
    return imported.read_original(began)


def make_original(source: Path, model: OpenModel) -> dict[str, Any]:
    """That of the model in ``source``, or where it has none, of the first family that can hold it.
    Raises ``ConfigError`` if none can.
    """
    if (found := find_original(source)) is not None:
        return found
    return write_config(model.config, None, None) | {"max_position_embeddings": model.context}
