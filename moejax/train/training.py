"""A training run, from its settings to its report."""

import dataclasses
import shlex
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from moejax.config.config import Config
from moejax.config.errors import ConfigError, UserError
from moejax.config.model import FloatType, ModelConfig
from moejax.hf.configs import collect_computation, list_differences
from moejax.inference.kept_files import keep_files
from moejax.inference.open_model import OpenModel
from moejax.inference.opening import open_model
from moejax.inference.peek import peek_config
from moejax.models.adapters import begin_adapters, find_weights
from moejax.models.training_room import check_training_room
from moejax.moe.quantise_params import Weights
from moejax.runs.checkpoint import Checkpoints
from moejax.runs.quantised_mark import refuse_quantised
from moejax.runs.run_directory import RunDirectory
from moejax.runtime import batch_rows, partition
from moejax.runtime.processes import say
from moejax.train.announce import announce, warn_of_constant_weights, warn_of_decoding
from moejax.train.base_model import Base, check_beginning, find_beginning, make_base
from moejax.train.count_tokens import find_token_counts
from moejax.train.environment import Environment, enter
from moejax.train.evaluation import Evaluation
from moejax.train.finish import finish, say_result
from moejax.train.interval import IntervalLog
from moejax.train.journal import Journal
from moejax.train.loop import run_steps
from moejax.train.metrics_writer import MetricsWriter, check_writers, open_writers
from moejax.train.prepare import Learner, Programs, make_learner, make_programs, shared_settings
from moejax.train.progress import Beside
from moejax.train.saving import Saving
from moejax.train.state import TrainState, start_state
from moejax.train.step_runner import StepRunner
from moejax.train.tally import Tally
from moejax.train.tasks import Task, open_task
from moejax.train.utilisation import make_utilisation

ALL_SAVED = "all steps are saved; the same command writes the sample and the report."


def train(
    config: Config,
    *,
    name: str,
    command: str,
    beside: Beside | None = None,
    writers: Sequence[MetricsWriter] = (),
) -> None:
    """Train, or go on training, the run of ``config``; docs/guides/runs.md says what that leaves.

    All processes of a job call it alike. Raises ``UserError`` with a message for the user, and
    ``Stopped`` after a signal. ``beside``: what is shown beside the time left. ``writers`` take
    every line of metrics, too, in the process that writes the run's files; they are closed when
    the steps end.
    """
    check_writers(config.run)
    if config.run.init_from is not None:
        refuse_quantised(find_beginning(config), "training from it")
    with enter(config, name) as environment:
        run, mesh, processes = environment.run, environment.mesh, environment.processes
        measure = config.model.material.measure
        if config.run.init_from is not None and not any(run.checkpoints.glob("[0-9]*")):
            check_beginning(config)
        task = processes.first_then_others(lambda: open_task(config, run.tokenizer))
        processes.check_same("settings or data", shared_settings(config, task))
        config = find_token_counts(config, task, processes, partial(read_counts, config, run))
        check_training_room(config, task.vocab_size, mesh.shape)
        learner = make_learner(config, task.vocab_size, mesh)
        keep = config.run.keep_checkpoints
        checkpoints = Checkpoints(run.checkpoints, keep, processes, measure.key)
        with closing(checkpoints):
            if processes.first:
                warn_of_decoding(config)
                warn_of_constant_weights(config)
            base = read_base(config, learner, mesh)
            frozen = None if base is None else base.params
            programs = make_programs(config, learner, mesh, frozen)
            saving = make_saving(config, environment, checkpoints, task, base)
            state, tally = restore_or_begin(config, learner, mesh, saving, base)
            run.write_config(config)
            keep_files(run, config, getattr(task, "tokenizer", None))
            began = read_beginning(config)
            announce(config, task, mesh, run, tally.step, name=name, command=command, before=began)
            if tally.step < config.run.steps:
                with closing(Journal(run, [*open_writers(config, run), *writers])) as journal:
                    state = run_steps(
                        state,
                        tally,
                        config=config.run,
                        step=StepRunner(
                            *(programs.step, programs.compile_step, config.run),
                            run if run.owner else None,
                        ),
                        environment=environment,
                        intervals=make_intervals(config, task, mesh, programs, journal),
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
            whole = programs.complete(state.params)
            if config.mesh.zero1:  # as those who generate want them
                shardings = partition.tree_shardings(mesh, whole, config.mesh.fsdp)
                whole = jax.device_put(whole, shardings)
            state = dataclasses.replace(state, params=whole)
            finish(config, task, measure, environment, state, tally)


def make_intervals(
    config: Config, task: Task, mesh: Mesh, programs: Programs, journal: Journal
) -> IntervalLog:
    """What writes the lines of metrics."""
    return IntervalLog(
        config,
        config.model.material.measure,
        journal,
        programs.router_arrays,
        task.counted,
        make_utilisation(config, task.vocab_size, mesh, journal.run.owner),
    )


def make_saving(
    config: Config,
    environment: Environment,
    checkpoints: Checkpoints,
    task: Task,
    base: Base | None,
) -> Saving:
    """How the run is saved, beginning with the first batch."""
    rows = batch_rows.process_rows(environment.mesh, config.data.batch_size)
    return Saving(
        config=config,
        run=environment.run,
        checkpoints=checkpoints,
        batches=task.train_batches(rows),
        description=task.description,
        marks=task.marks,
        processes=environment.processes,
        base=None if base is None else base.digest,
    )


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
    config: Config, learner: Learner, mesh: Mesh, saving: Saving, base: Base | None
) -> tuple[TrainState, Tally]:
    """The state of the last readable checkpoint, on this mesh; or a new one."""
    if restored := saving.restore(learner.like):
        return restored
    if base is not None:
        return begin_beside(base, config, learner), Tally()
    if config.run.init_from is None:
        return jax.jit(learner.init, out_shardings=learner.shardings)(), Tally()
    return begin_from_model(config, learner, mesh), Tally()


def read_base(config: Config, learner: Learner, mesh: Mesh) -> Base | None:
    """The base of a run with adapters, on ``mesh``; None for other runs. Raises as
    ``open_beginning`` does.
    """
    if config.run.lora.rank is None:
        return None
    in_float32 = config.model.dtype == "float32"
    dtype: FloatType | None = "float32" if in_float32 else None
    there = open_beginning(config, learner, mesh, dtype, find_weights(config.run.lora))
    return make_base(config, there)


def begin_beside(base: Base, config: Config, learner: Learner) -> TrainState:
    """The state before the first step of adapters."""

    def start(params: dict, bias_LE: jax.Array | None) -> TrainState:
        trained = begin_adapters(params, config.run.lora, jax.random.key(config.run.seed))
        return start_state(trained, bias_LE, learner.optimizer, config)

    return jax.jit(start, out_shardings=learner.shardings)(base.params, base.bias_LE)


def begin_from_model(config: Config, learner: Learner, mesh: Mesh) -> TrainState:
    """The state before the first step, with the parameters of ``run.init_from`` in float32. Raises
    as ``open_beginning`` does.
    """
    there = open_beginning(config, learner, mesh, "float32")
    start = partial(start_state, optimizer=learner.optimizer, config=config)
    begin = jax.jit(start, out_shardings=learner.shardings, donate_argnums=0)
    return begin(there.params, there.bias_LE)


def open_beginning(
    config: Config,
    learner: Learner,
    mesh: Mesh,
    dtype: FloatType | None,
    weights: Weights | None = None,
) -> OpenModel:
    """The model of ``run.init_from``, in ``dtype``, by default in its own, or quantised. Raises
    ``ConfigError`` if it is another model than the settings describe, with the flags that make them
    like it.
    """
    place = config.run.init_from
    say(f"reading  {place}")
    there = open_model(
        find_beginning(config), mesh=mesh, layout=config.mesh, dtype=dtype, weights=weights
    )
    resolved = dataclasses.replace(config.model, vocab_size=learner.model.vocab_size)
    differences = list_differences(collect_computation(there.config), collect_computation(resolved))
    if differences:
        raise ConfigError(
            f"--run.init-from {place} is another model than the settings describe. It has"
            f" {', '.join(differences)}. Begin from its own settings: --config"
            f" {shlex.quote(str(Path(str(place)) / 'config.json'))}, if `moejax import` wrote it."
        )
    return there


def read_counts(config: Config, run: RunDirectory) -> tuple[int, ...] | None:
    """The counts of tokens that this run has kept, if it has begun, or the model that it begins
    from; None where there are none.
    """
    if any(run.checkpoints.glob("[0-9]*")):
        try:
            kept = peek_config(run.path)
        except UserError:  # it is gone, and is written anew
            kept = None
        if kept is not None and kept.moe.token_counts is not None:
            return kept.moe.token_counts
    began = read_beginning(config)
    return None if began is None else began.moe.token_counts


def read_beginning(config: Config) -> ModelConfig | None:
    """The settings of the model of ``run.init_from``, from its own ``config.json``; None where
    there is no such model, or no such file any more.
    """
    if config.run.init_from is None:
        return None
    try:
        return peek_config(find_beginning(config))
    except (UserError, OSError):
        return None
