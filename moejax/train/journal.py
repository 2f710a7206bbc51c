"""Where a run writes its lines of metrics."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from moejax.config.errors import UserError
from moejax.runs.run_directory import RunDirectory
from moejax.train.metrics_writer import MetricsWriter


class Journal:
    """The files of a run, and the ``writers`` beside them. A writer that fails is left out from
    then on, with a warning: training does not end for it. A ``UserError`` of a writer ends it.
    """

    def __init__(self, run: RunDirectory, writers: Iterable[MetricsWriter]) -> None:
        self.run = run
        self._writers = list(writers) if run.owner else []

    def write(self, line: dict[str, Any], load_LE: np.ndarray | None = None) -> None:
        """Write a line of metrics, and the load of the experts that goes with it."""
        self.run.append_metrics(line)
        self._each(lambda writer: writer.write(line, load_LE))

    def close(self) -> None:
        """Close the writers."""
        self._each(lambda writer: writer.close())

    def _each(self, act: Callable[[MetricsWriter], None]) -> None:
        for writer in tuple(self._writers):
            try:
                act(writer)
            except UserError:
                raise
            except Exception as error:  # of any library, and of a network
                self._writers.remove(writer)
                warnings.warn(
                    f"no more metrics are written by {type(writer).__name__}:"
                    f" {type(error).__name__}: {error}. Training goes on, and"
                    f" {self.run.metrics_file} has all of them.",
                    stacklevel=3,
                )
