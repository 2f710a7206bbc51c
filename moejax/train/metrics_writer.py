"""What takes the lines of metrics beside ``metrics.jsonl``; those that the settings ask for."""

from importlib import import_module
from typing import Any, Protocol

import numpy as np

from moejax.config.config import Config
from moejax.config.errors import ConfigError
from moejax.config.run import RunConfig
from moejax.runs.run_directory import RunDirectory
from moejax.train.tensorboard import TensorBoard
from moejax.train.weights_and_biases import WeightsAndBiases


class MetricsWriter(Protocol):
    """Takes the lines of metrics of a run, in the one process that writes its files."""

    def write(self, line: dict[str, Any], load_LE: np.ndarray | None = None) -> None:
        """Take a line, as it stands in ``metrics.jsonl``: ``step``, ``split`` and figures, which
        may be NaN or infinite. With a training line of a routed model comes ``load_LE``: how often
        tokens asked for each expert in the interval.
        """

    def close(self) -> None:
        """Training has ended, whichever way: write what has not been written yet."""


def check_writers(run: RunConfig) -> None:
    """Raise ``ConfigError`` if a package is missing that a setting needs."""
    if run.tensorboard:
        _check_package("tensorboardX", "tensorboard", "--run.tensorboard True")
    if run.wandb is not None:
        _check_package("wandb", "wandb", f"--run.wandb {run.wandb}")


def _check_package(package: str, extra: str, flag: str) -> None:
    try:
        import_module(package)  # rather now than after the first interval
    except ImportError as error:
        raise ConfigError(f"{flag} needs {package}: pip install -e '.[{extra}]'.") from error


def open_writers(config: Config, run: RunDirectory) -> list[MetricsWriter]:
    """The writers that the settings of ``config.run`` ask for; none in a process that does not own
    the run. Raises ``ConfigError`` if nobody is logged in to Weights & Biases.
    """
    writers: list[MetricsWriter] = []
    if not run.owner:
        return writers
    if config.run.tensorboard:
        writers.append(TensorBoard(run.path / "tensorboard"))
    if config.run.wandb is not None:
        writers.append(WeightsAndBiases(config, run))
    return writers
