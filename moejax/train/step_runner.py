"""Runs the compiled training step, and traces the steps of ``--run.profile``."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax

from moejax.config.run import RunConfig
from moejax.runs.run_directory import RunDirectory
from moejax.train.operations import describe_operations, write_operations
from moejax.train.reports import StepReport
from moejax.train.state import TrainState

Batch = dict[str, jax.Array]


class StepRunner:
    """The training step of a run. ``compile_step`` compiles the ``step`` for a state and a batch.
    ``run`` is where traces are written; None for none, in processes that write nothing.
    """

    def __init__(
        self,
        step: Callable[[TrainState, Batch], tuple[TrainState, StepReport]],
        compile_step: Callable[[TrainState, Batch], Any],
        config: RunConfig,
        run: RunDirectory | None,
    ) -> None:
        self._step, self._compile_step, self._run = step, compile_step, run
        self._steps = config.profiled if run is not None else range(0)
        self._tracing: range | None = None

    def compile(self, state: TrainState, batch: Batch) -> Any:
        """Compile the step for such a state and batch; returns the compiled program."""
        return self._compile_step(state, batch)

    def run(
        self, number: int, state: TrainState, batch: Batch, say: Callable[[str], None]
    ) -> tuple[TrainState, StepReport]:
        """Run the step of this number, the first being 1. ``say`` prints lines about the trace."""
        if self._steps and number >= self._steps.stop:
            say(f"profile  the steps {self._steps[0]} to {self._steps[-1]} are done: no trace.")
            self._steps = range(0)
        if number in self._steps and self._tracing is None:
            # A run that goes on inside the range traces the rest of it.
            self._tracing = range(number, self._steps.stop)
            jax.block_until_ready(state)
            self._start_trace()
        traced = self._tracing is not None
        note = jax.profiler.StepTraceAnnotation("train", step_num=number)
        with note if traced else nullcontext():
            state, report = self._step(state, batch)
        if self._tracing is not None and number == self._tracing[-1]:
            jax.block_until_ready((state, report))
            jax.profiler.stop_trace()
            self._write(state, batch, say)
        return state, report

    def close(self) -> None:
        """End a trace that an error or a signal has cut off."""
        if self._tracing is not None:
            self._tracing = None
            jax.profiler.stop_trace()

    def _start_trace(self) -> None:
        assert self._run is not None  # else there are no steps to trace
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # calls of Python would be most of the file
        jax.profiler.start_trace(str(self._run.profile), profiler_options=options)

    def _write(self, state: TrainState, batch: Batch, say: Callable[[str], None]) -> None:
        """The table of operations. The step is not compiled again: JAX keeps it."""
        steps, self._tracing, self._steps = self._tracing, None, range(0)
        assert self._run is not None and steps is not None
        text = self.compile(state, batch).as_text()
        say(describe_operations(write_operations(self._run.profile, steps, text)))
