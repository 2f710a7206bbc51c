"""A training run, from its settings to its report."""

import dataclasses
import shlex
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from moejax.config.config import Config
from moejax.config.errors import ConfigError
from moejax.config.paths import expand_home
from moejax.hf.configs import collect_computation, list_differences
from moejax.inference.kept_files import keep_files
from moejax.inference.opening import open_model
from moejax.models.training_room import check_training_room
from moejax.runs.checkpoint import Checkpoints
from moejax.runs.quantised_mark import refuse_quantised
from moejax.runtime import batch_rows
from moejax.runtime.processes import say
from moejax.train.announce import announce, warn_of_constant_weights, warn_of_decoding
from moejax.train.environment import enter
from moejax.train.evaluation import Evaluation
from moejax.train.finish import finish, say_result
from moejax.train.interval import IntervalLog
from moejax.train.journal import Journal
from moejax.train.loop import run_steps
from moejax.train.prepare import Learner, Programs, make_learner, make_programs, shared_settings
from moejax.train.progress import Beside
from moejax.train.saving import Saving
from moejax.train.state import TrainState, start_state
from moejax.train.tally import Tally
from moejax.train.tasks import Task, open_task
from moejax.train.tensorboard import TensorBoard

ALL_SAVED = "all steps are saved; the same command writes the sample and the report."


def train(config: Config, *, name: str, command: str, beside: Beside | None = None) -> None:
    """Train, or go on training, the run of ``config``; docs/guides/runs.md says what that leaves.

    All processes of a job call it alike. Raises ``UserError`` with a message for the user, and
    ``Stopped`` after a signal. ``beside``: what is shown beside the time left.
    """
    if config.run.init_from is not None:
        began = Path(expand_home("--run.init-from", config.run.init_from))
        refuse_quantised(began, "training from it")
    with enter(config, name) as environment:
        run, mesh, processes = environment.run, environment.mesh, environment.processes
        boards = run.path / "tensorboard" if config.run.tensorboard and run.owner else None
        board, measure = TensorBoard(boards), config.model.material.measure
        task = processes.first_then_others(lambda: open_task(config, run.tokenizer))
        processes.check_same("settings or data", shared_settings(config, task))
        check_training_room(config, task.vocab_size, mesh.shape)
        learner = make_learner(config, task.vocab_size, mesh)
        keep = config.run.keep_checkpoints
        checkpoints = Checkpoints(run.checkpoints, keep, processes, measure.key)
        with closing(board), closing(checkpoints):
            if processes.first:
                warn_of_decoding(config)
                warn_of_constant_weights(config)
            programs, journal = make_programs(config, learner, mesh), Journal(run, board)
            saving = Saving(
                config=config,
                run=run,
                checkpoints=checkpoints,
                batches=task.train_batches(batch_rows.process_rows(mesh, config.data.batch_size)),
                description=task.description,
                marks=task.marks,
                processes=processes,
            )
            state, tally = restore_or_begin(config, learner, mesh, saving)
            run.write_config(config)
            keep_files(run, config, getattr(task, "tokenizer", None))
            announce(config, task, mesh, run, tally.step, name=name, command=command)
            if tally.step < config.run.steps:
                state = run_steps(
                    state,
                    tally,
                    config=config.run,
                    step=programs.step,
                    environment=environment,
                    intervals=IntervalLog(config, measure, journal, programs.router_arrays),
                    evaluation=make_evaluation(config, task, mesh, programs, journal),
                    saving=saving,
                    beside=beside,
                )
            elif processes.agree(run.report.exists()):
                say(f"This run is finished: {tally.step} steps. To go on, raise --run.steps.")
                say_result(config, run)
                return
            checkpoints.wait()  # without steps, it was killed after the last checkpoint
            environment.stop.end(ALL_SAVED)
            finish(config, task, measure, environment, state, tally)


def make_evaluation(
    config: Config, task: Task, mesh: Mesh, programs: Programs, journal: Journal
) -> Evaluation:
    """How the run is evaluated."""
    return Evaluation(
        task=task,
        mesh=mesh,
        rows=config.data.eval_batch_size,
        part_batches=config.run.part_batches,
        num_experts=config.model.moe.num_experts,
        eval_step=programs.eval_step,
        first_choices=programs.first_choices,
        journal=journal,
    )


def restore_or_begin(
    config: Config, learner: Learner, mesh: Mesh, saving: Saving
) -> tuple[TrainState, Tally]:
    """The state of the last readable checkpoint, on this mesh; or a new one."""
    if restored := saving.restore(learner.like):
        return restored
    if config.run.init_from is None:
        return jax.jit(learner.init, out_shardings=learner.shardings)(), Tally()
    return begin_from_model(config, learner, mesh), Tally()


def begin_from_model(config: Config, learner: Learner, mesh: Mesh) -> TrainState:
    """The state before the first step, with the parameters of ``run.init_from`` in float32. Raises
    ``ConfigError`` if that is another model, with the flags that would make this one like it.
    """
    place = config.run.init_from
    assert place is not None
    say(f"reading  {place}")
    place = expand_home("--run.init-from", place)
    there = open_model(Path(place), mesh=mesh, layout=config.mesh, dtype="float32")
    resolved = dataclasses.replace(config.model, vocab_size=learner.model.vocab_size)
    theirs = dataclasses.replace(there.config, vocab_size=there.vocab_size)
    differences = list_differences(collect_computation(theirs), collect_computation(resolved))
    if differences:
        raise ConfigError(
            f"--run.init-from {place} is another model than the settings describe. It has"
            f" {', '.join(differences)}. Begin from its own settings: --config"
            f" {shlex.quote(str(Path(place) / 'config.json'))}, if `moejax import` wrote it."
        )
    start = partial(start_state, optimizer=learner.optimizer, config=config)
    begin = jax.jit(start, out_shardings=learner.shardings, donate_argnums=0)
    return begin(there.params, there.bias_LE)
