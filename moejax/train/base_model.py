"""The model that a run begins from, and that stays as it is where adapters are trained."""

from dataclasses import dataclass
from pathlib import Path

import jax

from moejax.config.config import Config
from moejax.config.errors import RunError
from moejax.config.paths import expand_home
from moejax.inference.open_model import OpenModel
from moejax.models.used_types import read_frozen
from moejax.runs.same_model import sum_arrays


@dataclass(frozen=True, kw_only=True)
class Base:
    """The frozen model beside adapters."""

    params: dict
    """See ``used_types.read_frozen``."""
    bias_LE: jax.Array | None
    digest: str | None
    """Which model it is: ``same_model.sum_arrays``."""


def make_base(config: Config, there: OpenModel) -> Base:
    """The base of a run with adapters, from the model of ``run.init_from``."""
    return Base(
        params=read_frozen(there.params, config.model),
        bias_LE=there.bias_LE,
        digest=sum_arrays(find_beginning(config)),
    )


def check_beginning(config: Config) -> None:
    """Raise ``RunError`` if there is nothing at ``run.init_from``, or a run that has saved nothing
    yet. If that is the run of a file in `configs/`, the message has the command that trains it.
    """
    place = find_beginning(config)
    file = Path("configs", f"{place.name}.py")
    known = place.parent == Path("runs") and file.is_file()
    first = f" Train it first: python train.py --config {file}" if known else ""
    if not place.is_dir():
        more = first or " Give that of a model."
        raise RunError(f"--run.init-from {place}: there is no directory of that name.{more}")
    if (place / "checkpoints").is_dir() and not any((place / "checkpoints").glob("[0-9]*")):
        raise RunError(f"--run.init-from {place}: this run has saved no checkpoint yet.{first}")


def find_beginning(config: Config) -> Path:
    """The directory of ``run.init_from``."""
    assert config.run.init_from is not None
    return Path(expand_home("--run.init-from", config.run.init_from))
