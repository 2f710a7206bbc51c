"""Evaluation of a run on held-out data."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from moejax.config.errors import RunError
from moejax.data.batches import Batch, pick_rows
from moejax.moe import balance
from moejax.runs.run_layout import CHOICES, PART_CHOICES
from moejax.runtime import batch_rows
from moejax.train.journal import Journal
from moejax.train.metrics import (
    ahead_metrics,
    count_evaluated,
    loss_metrics,
    router_metrics,
    source_metrics,
)
from moejax.train.state import TrainState
from moejax.train.tasks import Task
from moejax.train.totals import Totals, add_class_counts, add_totals, sum_batch


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluates the model between two steps, and writes what comes out."""

    task: Task
    mesh: Mesh
    rows: int
    """Rows of a batch, over all processes."""
    part_batches: int
    num_experts: int
    eval_step: Callable
    first_choices: Callable
    """Brings the first positions of the first sequences of ``chosen_LBNE`` to all processes."""
    journal: Journal

    def evaluate(self, state: TrainState, step: int) -> dict[str, Any]:
        """Evaluate on all that is held out, and write; returns the line of metrics."""
        started = time.monotonic()
        line, counts = self._measure(state, step, self._batches(), CHOICES)
        line = {"step": step, "split": "validation", **line}
        line["seconds"] = time.monotonic() - started
        self.journal.write(line)
        if counts is not None:
            self.journal.run.write_classes(step, **counts)
        return line

    def evaluate_part(self, state: TrainState, step: int) -> None:
        """Evaluate on a part of what is held out, and write."""
        started = time.monotonic()
        line, _ = self._measure(state, step, self._part, PART_CHOICES)
        seconds = {"seconds": time.monotonic() - started}
        self.journal.write({"step": step, "split": "part", **line, **seconds})

    def _batches(self) -> dict[str, Iterable[Batch]]:
        return self.task.validation_batches(batch_rows.process_rows(self.mesh, self.rows))

    @cached_property
    def _part(self) -> dict[str, list[Batch]]:
        own_rows = batch_rows.process_rows(self.mesh, self.rows)
        return {
            name: pick_rows(partial(self._read, name), self.part_batches, own_rows, self.rows)
            for name in self._batches()
        }

    def _read(self, source: str) -> Iterable[Batch]:
        return self._batches()[source]

    def _measure(
        self, state: TrainState, step: int, batches: Mapping[str, Iterable[Batch]], folder: str
    ) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
        """Metrics of these batches, by source, and for images the counts by class; choices are
        written.
        """
        totals, chosen_LBNE, counts = None, None, None
        by_source: dict[str, Totals | None] = dict.fromkeys(batches)
        for name, batch in ((name, one) for name, own in batches.items() for one in own):
            placed = batch_rows.place_batch(self.mesh, batch)
            report, chosen, classes = self.eval_step(state.params, state.bias_LE, placed)
            chosen_LBNE = chosen if totals is None else chosen_LBNE  # of the first batch
            summed = sum_batch(report)
            by_source[name] = add_totals(by_source[name], summed)
            totals = add_totals(totals, summed)
            counts = add_class_counts(counts, classes)
        if totals is None:
            raise RunError("the validation text gives no tokens: nothing can be evaluated on it.")
        line = {
            **loss_metrics(totals),
            **source_metrics(by_source),
            **ahead_metrics(totals),
            **router_metrics(totals, self.num_experts),
            **self._compare_choices(step, chosen_LBNE, folder),
            **count_evaluated(totals),
        }
        return line, counts

    def _compare_choices(
        self,
        step: int,
        chosen_LBNE: jax.Array | None,
        folder: str,
        tokens: int = 8192,
        bits: int = 2**23,
    ) -> dict[str, float]:
        """Write the choices of the first ``tokens`` tokens of the validation text, but at most
        1 MiB, and compare them with the evaluation before: the share of choices that are the same,
        mean over layers.
        """
        if chosen_LBNE is None:
            return {}
        L, _, N, E = chosen_LBNE.shape
        N *= self.mesh.shape["context"]  # which has a piece of each sequence in a row
        tokens = max(1, min(tokens, bits // (L * E)))
        first = self.first_choices(chosen_LBNE, max(1, tokens // N), min(tokens, N))
        now_LBNE, run = np.asarray(first), self.journal.run
        if not run.owner:
            return {}
        earlier_LBNE = run.last_choices(folder)
        run.write_choices(step, now_LBNE, folder)
        if earlier_LBNE is None or earlier_LBNE.shape != now_LBNE.shape:
            return {}
        return {"router_saturation": float(balance.saturation(now_LBNE, earlier_LBNE).mean())}
