"""Where a run writes its lines of metrics."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from moejax.runs.run_directory import RunDirectory
from moejax.train.tensorboard import TensorBoard


@dataclass(frozen=True)
class Journal:
    """The files of a run, and TensorBoard."""

    run: RunDirectory
    board: TensorBoard

    def write(self, line: dict[str, Any], load_LE: np.ndarray | None = None) -> None:
        """Write a line of metrics, and the load of the experts that goes with it."""
        self.run.append_metrics(line)
        self.board.write(line, load_LE)
