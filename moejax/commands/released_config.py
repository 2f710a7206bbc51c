"""The config of a released model, from its config.json alone, for commands that build nothing."""

from pathlib import Path
from typing import Any

from moejax.commands.command_line import override
from moejax.config.change import changed
from moejax.config.config import Config
from moejax.config.data import DataConfig
from moejax.config.errors import UserError
from moejax.config.json_files import read_json
from moejax.config.run import RunConfig
from moejax.hf.configs import read_config

LENGTH = 4096
"""Positions in a sequence where only a model's config.json is known."""


def read_fields(file: Path) -> dict[str, Any]:
    """The fields of ``--hf``, a config.json or the directory of one. Raises ``UserError``."""
    file = file / "config.json" if file.is_dir() else file
    try:
        fields = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--hf {file} cannot be read: {error}. It should be the config.json of a model."
        ) from error
    if not isinstance(fields, dict):
        raise UserError(f"--hf {file} is not a JSON object.")
    return fields


def read_released(
    file: Path, fields: dict[str, Any], flags: list[str], program: str, rows: int = 1
) -> Config:
    """A released model by the ``fields`` of its file, trained on ``rows`` sequences at once in
    bfloat16, changed by flags. Raises ``UserError``.
    """
    try:
        model = read_config(fields)
    except UserError as error:
        raise UserError(f"--hf {file}: {error}") from error
    length = min(LENGTH, model.attention.longest or LENGTH)
    data = DataConfig(sequence_length=length, batch_size=rows, eval_batch_size=rows)
    config = Config(
        model=changed(model, {"dtype": "bfloat16", "remat": "layer"}),
        data=data,
        run=RunConfig(init_from=str(file)),
    )
    return override(config, flags, f"{program} --hf {file}")
