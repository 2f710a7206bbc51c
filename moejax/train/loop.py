"""The loop over training steps."""

import time
from dataclasses import dataclass

import jax
import numpy as np

from moejax.config.errors import DivergedError
from moejax.config.run import RunConfig
from moejax.data.batches import Batch
from moejax.runtime import batch_rows
from moejax.runtime.stop import Stopped, StopSignals
from moejax.train.environment import Environment
from moejax.train.evaluation import Evaluation
from moejax.train.interval import IntervalLog
from moejax.train.metrics import describe_quality, describe_sources
from moejax.train.progress import Beside, Progress
from moejax.train.reports import StepReport
from moejax.train.saving import Saving
from moejax.train.state import TrainState
from moejax.train.step_runner import StepRunner
from moejax.train.tally import Tally
from moejax.train.totals import sum_step
from moejax.train.utilisation import Utilisation


def run_steps(
    state: TrainState,
    tally: Tally,
    *,
    config: RunConfig,
    step: StepRunner,
    environment: Environment,
    intervals: IntervalLog,
    evaluation: Evaluation,
    saving: Saving,
    beside: Beside | None = None,
) -> TrainState:
    """Train to the last step; log, evaluate and save on the way. Returns the final state."""
    processes, stop, first_step = environment.processes, environment.stop, tally.step
    progress = Progress(config.steps, first_step, intervals.measure, not processes.first, beside)
    environment.run.remove_report()
    progress.begin_compilation()
    utilisation = intervals.utilisation
    account = Account(tally, progress, config.max_skipped_in_a_row, utilisation)
    try:
        while tally.step < config.steps:
            batch = place_batch(next(saving.batches), environment)
            if tally.step == first_step:
                utilisation.read(step.compile(state, batch))
                account.leave_out_compiling()
            state, report = step.run(tally.step + 1, state, batch, progress.say)
            signum = account.settle()
            account.expect(report)
            tally.step += 1
            if tally.step == first_step + 1:
                jax.block_until_ready(report)
                stop.begin()
                progress.end_compilation()
                progress.say(utilisation.describe())
            due = Due.after(tally.step, config)
            if not (due.log or due.part or due.evaluate or due.save or signum):
                continue
            signum = max(signum, account.settle())
            if due.log:
                line = intervals.write(state, tally, report)
                progress.print_interval(line)
                for alarm in line.get("alarms", ()):
                    progress.say(f"alarm    {alarm['words']}")
            if due.part or due.evaluate:
                wait_for_evaluation(tally.step, stop, progress)
            if due.part:
                evaluation.evaluate_part(state, tally.step)
            score = None
            if due.evaluate:
                line = evaluation.evaluate(state, tally.step)
                progress.say(f"step {tally.step}  validation: {describe_quality(line)}")
                if sources := describe_sources(line):
                    progress.say(f"         {sources}")
                score = line[intervals.measure.key]
                tally.best = min(tally.best, score)
                signum = max(signum, processes.largest(stop.check() or 0))
            if due.save or signum or (score is not None and score <= tally.best):
                saving.save(state, tally, score)
            if signum:
                stop_after_saving(signum, tally, environment, saving, progress)
            account.restart_clock()
    except DivergedError:
        processes.leave()
        raise
    finally:
        step.close()
        progress.close()
    return state


@dataclass(frozen=True, kw_only=True)
class Due:
    """What is to be done after a step; all of it after the last."""

    log: bool
    part: bool
    evaluate: bool
    save: bool

    @classmethod
    def after(cls, step: int, config: RunConfig) -> "Due":
        """What the settings ask for."""

        def due(every: int | None) -> bool:
            return every is not None and (step == config.steps or step % every == 0)

        return cls(
            log=due(config.log_every),
            part=due(config.part_every),
            evaluate=due(config.eval_every),
            save=due(config.checkpoint_every),
        )


class Account:
    """Adds up what steps report. A report is fetched while the next step runs."""

    def __init__(
        self, tally: Tally, progress: Progress, most_skipped: int, utilisation: Utilisation
    ) -> None:
        self._tally, self._progress, self._most_skipped = tally, progress, most_skipped
        self._utilisation = utilisation
        self._waiting: StepReport | None = None
        self._clock, self._processor_clock = time.monotonic(), time.process_time()

    def expect(self, report: StepReport) -> None:
        """Take the report of a step that may still be running."""
        self._waiting = report

    def settle(self) -> int:
        """Add the report that waits, if there is one. Returns the signal to stop that any process
        had before its step, or 0. Raises ``DivergedError`` after too many skipped updates in a row.
        """
        if self._waiting is None:
            return 0
        report, self._waiting = self._waiting, None
        totals = sum_step(report)
        now, processor_now = time.monotonic(), time.process_time()
        seconds, self._clock = now - self._clock, now
        processor_seconds = processor_now - self._processor_clock
        self._processor_clock = processor_now
        tally = self._tally
        tally.add(totals, seconds, processor_seconds)
        assert tally.window is not None
        self._progress.update(
            totals["nats"] / max(1, totals["targets"]),
            tally.window["targets"] / tally.window_seconds,
            self._utilisation.mfu(tally.window["parts"], tally.window_seconds),
        )
        in_a_row = int(report.skipped_in_a_row)
        if in_a_row >= self._most_skipped:
            raise DivergedError(
                f"stopped: the loss or its gradient was not finite in {in_a_row} steps in a row, up"
                f" to step {tally.step}. Their updates were skipped. Usually a lower"
                f" --optim.learning-rate or a longer --optim.warmup-fraction helps, with another"
                f" --run.directory; --run.max-skipped-in-a-row sets this limit."
            )
        return 0 if report.signal is None else int(report.signal)

    def restart_clock(self) -> None:
        """What was done since the last step is no training time."""
        self._clock, self._processor_clock = time.monotonic(), time.process_time()

    def leave_out_compiling(self) -> None:
        """What was done until now is no processor time of training. The seconds have it: they say
        how long one waits.
        """
        self._processor_clock = time.process_time()


def place_batch(batch: Batch, environment: Environment) -> dict[str, jax.Array]:
    """Place a batch on the mesh. Each row carries the signal to stop of this process, or 0."""
    environment.stop.waits_for = "this step"
    signum = environment.stop.check() or 0
    signals_B = np.full(len(batch["segments"]), signum, np.int32)
    return batch_rows.place_batch(environment.mesh, batch | {"signals_B": signals_B})


def wait_for_evaluation(step: int, stop: StopSignals, progress: Progress) -> None:
    """Let the screen, and the answer to a signal, say what is done now."""
    stop.waits_for = f"the evaluation at step {step}"
    progress.wait_for(f"evaluating at step {step}")


def stop_after_saving(
    signum: int, tally: Tally, environment: Environment, saving: Saving, progress: Progress
) -> None:
    """Wait for the checkpoint, say how to go on, and raise ``Stopped``."""
    stopped = Stopped(signum)
    environment.stop.waits_for = f"the checkpoint of step {tally.step}"
    saving.checkpoints.wait()
    environment.processes.leave(ends_with=128 + signum)
    progress.say(
        f"{stopped.name}: saved step {tally.step} in {environment.run.path};"
        f" the same command goes on from there."
    )
    raise stopped
