"""The model that a run begins from, and that stays as it is where adapters are trained."""

from dataclasses import dataclass
from pathlib import Path

import jax

from moejax.config.config import Config
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


def find_beginning(config: Config) -> Path:
    """The directory of ``run.init_from``."""
    assert config.run.init_from is not None
    return Path(expand_home("--run.init-from", config.run.init_from))
