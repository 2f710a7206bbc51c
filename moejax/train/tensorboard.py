"""The lines of metrics once more, for TensorBoard."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from moejax.runs.pages.heatmaps import ratios


class TensorBoard:
    """Writes to a directory. The first line hides what an earlier start wrote about this step and
    later ones. Needs tensorboardX.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    def write(self, line: dict[str, Any], load_LE: np.ndarray | None = None) -> None:
        """The numbers of a line of metrics, and the load of all experts over the mean."""
        from tensorboardX import SummaryWriter  # an extra

        step = line["step"]
        if self._writer is None:
            self._writer = SummaryWriter(
                str(self._directory), purge_step=step, flush_secs=5, filename_suffix=f".{step}"
            )
        for name, value in numbers(line).items():
            self._writer.add_scalar(name, value, step)
        if load_LE is not None:
            for name, ratio_E in loads(line, load_LE).items():
                self._writer.add_histogram(name, ratio_E, step)

    def close(self) -> None:
        """Write at once what would be written some seconds later."""
        if self._writer is not None:
            self._writer.close()


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a line by name, such as `train/loss`."""
    return {
        f"{line['split']}/{name}": value
        for name, value in line.items()
        if isinstance(value, int | float) and math.isfinite(value) and name != "step"
    }


def loads(line: dict[str, Any], load_LE: np.ndarray) -> dict[str, np.ndarray]:
    """The load of the experts of each layer over its mean by name, such as
    `train/load/routed_layer_0`.
    """
    return {
        f"{line['split']}/load/routed_layer_{layer}": ratio_E
        for layer, ratio_E in enumerate(ratios(load_LE))
    }
