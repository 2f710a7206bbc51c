"""The lines of metrics once more, for TensorBoard."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from moejax.config.errors import ConfigError
from moejax.runs.pages.heatmaps import ratios


class TensorBoard:
    """Writes to a directory; with ``directory`` None it does nothing. The first line hides what an
    earlier start wrote about this step and later ones.

    Raises ``ConfigError`` if tensorboardX is not installed.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._writer: Any = None
        if directory is None:
            return
        try:
            import tensorboardX  # noqa: F401 (an extra; rather now than after the first interval)
        except ImportError as error:
            raise ConfigError(
                "--run.tensorboard True needs tensorboardX: pip install -e '.[tensorboard]'."
            ) from error

    def write(self, line: dict[str, Any], load_LE: np.ndarray | None = None) -> None:
        """The numbers of a line of metrics, and the load of all experts over the mean."""
        if self._directory is None:
            return
        from tensorboardX import SummaryWriter

        split, step = line["split"], line["step"]
        if self._writer is None:
            self._writer = SummaryWriter(
                str(self._directory), purge_step=step, flush_secs=5, filename_suffix=f".{step}"
            )
        for name, value in line.items():
            if isinstance(value, int | float) and math.isfinite(value) and name != "step":
                self._writer.add_scalar(f"{split}/{name}", value, step)
        if load_LE is not None:
            for layer, ratio_E in enumerate(ratios(load_LE)):
                self._writer.add_histogram(f"{split}/load/routed_layer_{layer}", ratio_E, step)

    def close(self) -> None:
        """Write at once what would be written some seconds later."""
        if self._writer is not None:
            self._writer.close()
