"""What a directory says of its model before any weight is read."""

from pathlib import Path

from moejax.config.files import read_config_json
from moejax.config.model import ModelConfig
from moejax.data.tokenizer import Tokenizer, load_tokenizer
from moejax.hf.configs import read_config
from moejax.hf.files import is_checkpoint, read_json
from moejax.inference.imported import is_imported
from moejax.inference.trained_run import is_run, read_settings


def peek_config(path: Path) -> ModelConfig | None:
    """The settings of the model of a run, of an imported model, or of a checkpoint of Hugging Face;
    None for other directories. Raises ``UserError`` if they cannot be read.
    """
    if is_run(path) or is_imported(path):
        return read_config_json(path / "config.json").model
    return read_config(read_json(path / "config.json")) if is_checkpoint(path) else None


def peek_tokenizer(path: Path) -> Tokenizer | None:
    """Its tokenizer; None where there is none. Raises ``UserError`` if it cannot be read."""
    if is_run(path):
        return read_settings(path)[1]
    return load_tokenizer(str(path)) if (path / "tokenizer.json").is_file() else None
