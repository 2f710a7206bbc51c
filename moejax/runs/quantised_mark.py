"""The file that says that a directory holds a quantised model, made by `moejax quantise`."""

from pathlib import Path
from typing import Any

from moejax.config import json_files
from moejax.config.errors import ConfigError, RunError

MARK = "quantised.json"


def is_quantised_model(path: Path) -> bool:
    """Whether this is such a directory."""
    return (path / MARK).is_file()


def read_mark(path: Path) -> dict[str, Any]:
    """What is said of the model. Raises ``RunError`` for a damaged file."""
    try:
        said = json_files.read_json(path / MARK)
        if not isinstance(said, dict) or not isinstance(said["weights"]["kind"], str):
            raise ValueError("it does not say how")
        return said
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path / MARK} is damaged: {error}.") from error


def describe_mark(path: Path) -> str:
    """How the weights are quantised, in words."""
    weights = read_mark(path)["weights"]
    group = weights.get("group")
    words = {None: "", "channel": ", a scale for each channel"}
    return f"{weights['kind']}{words.get(group, f', groups of {group}')}"


def refuse_quantised(path: Path, what: str) -> None:
    """Raise ``ConfigError`` if ``path`` holds a quantised model, where ``what`` needs the weights
    themselves.
    """
    if is_quantised_model(path):
        source = read_mark(path).get("source", "the model that it was made of")
        raise ConfigError(
            f"{path} is a quantised model ({describe_mark(path)}), and {what} needs the weights"
            f" themselves: give the model that it was made of, {source}. `moejax generate` and"
            f" `moejax eval` run it as it is."
        )
