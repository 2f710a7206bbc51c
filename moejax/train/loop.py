"""A training run from config to report: all that touches files, screen and signals starts here."""

import dataclasses
import functools
import math
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import moejax
from moejax.config.config import Config
from moejax.config.errors import ConfigError, DivergedError, RunError
from moejax.config.files import flat, to_dict
from moejax.data.pipeline import TrainBatches, join_states
from moejax.hf.configs import differing, essence
from moejax.inference.generation import Generator
from moejax.inference.opening import open_model
from moejax.inference.sampling import Sampling
from moejax.models.by_kind import build
from moejax.models.classifier import ImageClassifier
from moejax.models.counts import active_parameters, cost, forward_flops, parameters
from moejax.models.decoder import DecoderLM
from moejax.moe import balance
from moejax.runs.checkpoint import Checkpoints
from moejax.runs.measures import Measure, measure_of
from moejax.runs.pages.report import write_report
from moejax.runs.run_directory import RunDirectory
from moejax.runtime import batch_rows, device_mesh, mesh_fit, partition
from moejax.runtime.number_words import duration, short
from moejax.runtime.processes import Processes, say
from moejax.runtime.stop import Stopped, StopSignals
from moejax.train import metrics, telemetry
from moejax.train.optimizer import make_optimizer, schedule
from moejax.train.progress import Progress
from moejax.train.step import StepReport, TrainState, eval_step, init_state, state_of, train_step
from moejax.train.tasks import LanguageTask, Task, open_task
from moejax.train.tensorboard import TensorBoard


@dataclass
class Progressed:
    """What changes while a run goes on, beside the train state; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    """Target tokens, or images, trained on."""
    seconds: float = 0.0
    """Training time, over all starts."""
    best: float = math.inf
    """Lowest validation bits per byte, or error rate, so far."""
    window: metrics.Totals | None = None
    """Sums since the last line of training metrics."""
    window_seconds: float = 0.0

    def to_json(self, data: dict[str, Any]) -> dict[str, Any]:
        """As saved beside the state; ``data`` names the text and the place in it."""
        best = self.best if math.isfinite(self.best) else None
        return vars(self) | {"best": best, "window": metrics.to_json(self.window)} | data

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Progressed":
        """The inverse of ``to_json``."""
        own = {name: value for name, value in saved.items() if name not in ("text", "place")}
        best = math.inf if own["best"] is None else own["best"]
        return cls(**own | {"best": best, "window": metrics.from_json(own["window"])})


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a run needs, made once."""

    config: Config
    name: str
    command: str
    run: RunDirectory
    board: TensorBoard
    mesh: Mesh
    task: Task
    measure: Measure
    model: DecoderLM | ImageClassifier
    step: Callable
    eval_step: Callable
    first_choices: Callable
    """Brings the first positions of the first sequences of ``chosen_LBNE`` to all processes."""
    router_arrays: Callable
    checkpoints: Checkpoints
    batches: TrainBatches
    stop: StopSignals
    processes: Processes


def train(config: Config, *, name: str, command: str) -> None:
    """Train, or go on training, the run of ``config``; see the README for what it leaves behind.

    All processes of a job call it alike. Raises ``UserError`` with a message for the user, and
    ``Stopped`` after a signal.
    """
    with Processes(config.distributed) as processes, StopSignals() as stop:
        try:
            mesh = device_mesh.make_mesh(config.mesh)
            mesh_fit.check_fits(config, mesh)
            directory = Path(config.run.directory or f"runs/{name}")
            with RunDirectory(directory, owner=processes.first) as run, jax.set_mesh(mesh):
                run.check(config)
                _train(config, name, command, run, mesh, stop, processes)
        except Stopped as stopped:
            if not stop.begun:
                say(f"{stopped.name}: stopped before the first step; there is nothing new to save.")
            raise
        except OSError as error:
            raise RunError(f"cannot write the run: {error}.") from error


def _train(
    config: Config,
    name: str,
    command: str,
    run: RunDirectory,
    mesh: Mesh,
    stop: StopSignals,
    processes: Processes,
) -> None:
    boards = run.path / "tensorboard" if config.run.tensorboard and run.owner else None
    board = TensorBoard(boards)
    task = processes.first_then_others(lambda: open_task(config))
    processes.check_same("settings or data", settings(config, task))
    model = build(config.model, task.vocab_size, config.mesh)
    optimizer = make_optimizer(config.optim)
    measure = measure_of(config.model.kind)
    checkpoints = Checkpoints(run.checkpoints, config.run.keep_checkpoints, processes, measure.key)
    run.write_config(config)

    begin = functools.partial(init_state, model, optimizer, config)
    shardings = partition.tree_shardings(mesh, jax.eval_shape(begin), config.mesh.fsdp)
    batch_sharding = partition.named(mesh, "batch_BN")
    everywhere = partition.named(mesh, "everywhere")
    if processes.first:
        warn_of_decoding(config)
    job = Job(
        config=config,
        name=name,
        command=command,
        run=run,
        board=board,
        mesh=mesh,
        task=task,
        measure=measure,
        model=model,
        step=jax.jit(
            functools.partial(
                step_and_vote,
                model=model,
                optimizer=optimizer,
                shape=schedule(config.optim, config.run.steps),
                config=config,
            ),
            in_shardings=(shardings, batch_sharding, batch_sharding),
            out_shardings=(shardings, everywhere, everywhere),
            donate_argnums=0,
            compiler_options=device_mesh.compiler_options(config.mesh, device_mesh.platform())
            or None,
        ),
        eval_step=jax.jit(
            functools.partial(eval_step, model=model),
            in_shardings=(shardings.params, shardings.bias_LE, batch_sharding),
            out_shardings=(everywhere, None, everywhere),
        ),
        first_choices=jax.jit(
            lambda chosen_LBNE, rows, positions: chosen_LBNE[:, :rows, :positions],
            static_argnums=(1, 2),
            out_shardings=everywhere,
        ),
        router_arrays=jax.jit(
            functools.partial(telemetry.router_arrays, config=config.model),
            out_shardings=everywhere,
        ),
        checkpoints=checkpoints,
        batches=task.train_batches(batch_rows.process_rows(mesh, config.data.batch_size)),
        stop=stop,
        processes=processes,
    )
    try:
        state, progressed = restore_or_begin(job, begin, shardings)
        say_what_is_trained(job, progressed)
        if progressed.step < config.run.steps:
            state = run_steps(job, state, progressed)
            finish(job, state, progressed)
        elif not processes.agree(run.report.exists()):  # killed after the last checkpoint
            finish(job, state, progressed)
        else:
            say(f"This run is finished: {progressed.step} steps. To go on, raise --run.steps.")
            say_result(job)
    finally:
        checkpoints.close()
        board.close()


def step_and_vote(
    state: TrainState, batch: dict[str, jax.Array], signals_B: jax.Array, **fixed: Any
) -> tuple[TrainState, StepReport, jax.Array]:
    """One update, and the largest of ``signals_B``: a signal to stop that reached any process."""
    return *train_step(state, batch, **fixed), signals_B.max()


def settings(config: Config, task: Task) -> dict[str, Any]:
    """What must be the same in all processes, or they would train different runs."""
    values = to_dict(config)
    del values["distributed"], values["data"]["directory"]
    return flat(values) | {
        **task.identity,
        "the version of jax": jax.__version__,
        "the version of moejax": moejax.__version__,
    }


def warn_of_decoding(config: Config) -> None:
    """Say once that a router which looks at later tokens is no language model's."""
    moe = config.model.moe
    if not any(config.model.routed_layers) or config.model.sees_images:
        return
    router, name, generation = moe.built_router, f"--model.moe.router {moe.router}", ""
    if not router.causal:
        how = "When text is generated" if router.by_token else "No text is generated with it"
        generation = f"{how}{',' if router.by_token else ':'} {router.decoding}."
    elif moe.seating == "priority":
        name = "--model.moe.seating priority"
        generation = "When text is generated, nothing is dropped, so that there it means nothing."
    if generation:
        warnings.warn(
            f"{name} looks at later tokens of a group to decide: in a causal language model the"
            f" training loss has seen the future. {generation} Compare it by other measures, or"
            f" choose a token-choice router such as top_k.",
            stacklevel=2,
        )


def restore_or_begin(
    job: Job, begin: Callable[[], TrainState], shardings: Any
) -> tuple[TrainState, Progressed]:
    """The state of the last readable checkpoint, on this mesh; or a new one."""
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(begin),
        shardings,
    )
    restored = job.checkpoints.restore(like)
    if restored is None:
        job.run.keep_metrics_until(0)
        if job.config.run.init_from is None:
            return jax.jit(begin, out_shardings=shardings)(), Progressed()
        return begin_from_model(job, shardings), Progressed()
    step, state, saved = restored
    if saved["text"] != job.task.description:
        raise RunError(
            f"{job.run.path} was trained on {saved['text']}, but now there is"
            f" {job.task.description}. Give it the same text, or start a new run with another"
            f" --run.directory."
        )
    job.batches.set_state(saved["place"])
    job.run.keep_metrics_until(step)
    return state, Progressed.from_json(saved)


def begin_from_model(job: Job, shardings: Any) -> TrainState:
    """The state before the first step, with the parameters of ``run.init_from`` in float32. Raises
    ``ConfigError`` if that is another model, with the flags that would make this one like it.
    """
    config, place = job.config, job.config.run.init_from
    say(f"reading  {place}")
    there = open_model(Path(place).expanduser(), mesh=job.mesh, layout=config.mesh, dtype="float32")
    resolved = dataclasses.replace(config.model, vocab_size=job.model.vocab_size)
    theirs = dataclasses.replace(there.config, vocab_size=there.vocab_size)
    differences = differing(essence(theirs), essence(resolved))
    if differences:
        raise ConfigError(
            f"--run.init-from {place} is another model than the settings describe. It has"
            f" {', '.join(differences)}. Begin from its own settings: --config"
            f" {Path(place) / 'config.json'}, if `moejax import` wrote it."
        )
    optimizer = make_optimizer(config.optim)
    begin = functools.partial(state_of, optimizer=optimizer, config=config)
    return jax.jit(begin, out_shardings=shardings, donate_argnums=0)(there.params, there.bias_LE)


def say_what_is_trained(job: Job, progressed: Progressed) -> None:
    """The head of what is printed, and ``summary.json``."""
    config, data = job.config, job.config.data
    price = cost(config.model, job.model.vocab_size, config.positions)
    kind = jax.devices()[0].device_kind
    axes = ", ".join(f"{axis} {size}" for axis, size in job.mesh.shape.items())
    devices = f"{job.mesh.size} x {kind} ({axes}), {jax.default_backend()}"
    tokens = data.batch_size * config.positions
    of_images = f" of {data.batch_size:,} images" if config.model.sees_images else ""
    routed = sum(config.model.routed_layers)
    moe = config.model.moe
    experts = f"{routed} of {config.model.num_layers} layers routed"
    if routed:
        experts += f", {moe.num_experts} experts, {moe.top_k} a token ({moe.router})"
    say(
        f"model    {short(price.parameters_total, 'kMBT')} parameters,"
        f" {short(price.parameters_active, 'kMBT')} active a token; {experts}"
    )
    say(
        f"cost     {short(price.flops_per_token)} FLOPs a token in training,"
        f" {tokens:,} tokens{of_images} a step, {config.run.steps:,} steps"
    )
    say(f"data     {job.task.description}")
    say(f"devices  {devices}")
    say(f"run      {job.run.path}" + (f", from step {progressed.step}" * bool(progressed.step)))
    summary = {
        "name": job.name,
        "parameters_total": price.parameters_total,
        "parameters_active": price.parameters_active,
        "flops_per_token": price.flops_per_token,
        "parts": parts_of(config, job.model.vocab_size),
        "devices": devices,
        "data": job.task.description,
        **job.task.facts,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "moejax": moejax.__version__,
        },
        "command": job.command,
    }
    job.run.write_summary(summary)


def parts_of(config: Config, vocab_size: int) -> dict[str, dict[str, int]]:
    """Parameters of each part of the model, those that a token meets, and its FLOPs in training."""
    model = config.model
    active = active_parameters(model, vocab_size)
    flops = forward_flops(model, vocab_size, config.positions)
    total = parameters(model, vocab_size)
    return {
        part: {
            "parameters_total": total.get(part, 0),
            "parameters_active": active.get(part, 0),
            "flops_per_token": 3 * flops.get(part, 0),
        }
        for part in total | flops
    }


def run_steps(job: Job, state: TrainState, progressed: Progressed) -> TrainState:
    """Train to the last step; log, evaluate and save on the way. Returns the final state."""
    config = job.config.run
    quiet = not job.processes.first
    progress = Progress(config.steps, progressed.step, job.measure, quiet=quiet)
    first_step = progressed.step
    job.run.remove_report()
    history = telemetry.History(job.run)
    progress.say("compiling the training step ...")
    job.stop.begin()
    waiting = None  # report and signal of the step before, fetched while the next one runs
    clock = time.monotonic()

    def account(report: StepReport, signal: jax.Array) -> int:
        """Add up what a step says; returns the signal that any process had before it, or 0."""
        nonlocal clock
        totals = metrics.totals_of_step(report)
        now = time.monotonic()
        seconds, clock = now - clock, now
        progressed.window = metrics.add(progressed.window, totals)
        progressed.window_seconds += seconds
        progressed.seconds += seconds
        progressed.tokens += totals["targets"]
        progress.update(
            totals["nats"] / max(1, totals["targets"]),
            progressed.window["targets"] / progressed.window_seconds,
        )
        in_a_row = int(report.skipped_in_a_row)
        if in_a_row >= config.max_skipped_in_a_row:
            job.processes.leave()
            raise DivergedError(
                f"stopped: the loss or its gradient was not finite in {in_a_row} steps in a row, up"
                f" to step {progressed.step}. Their updates were skipped. Usually a lower"
                f" --optim.learning-rate or a longer --optim.warmup-fraction helps, with another"
                f" --run.directory; --run.max-skipped-in-a-row sets this limit."
            )
        return int(signal)

    try:
        while progressed.step < config.steps:
            batch = next(job.batches)
            signals_B = np.full(len(batch["segments"]), job.stop.check() or 0, np.int32)
            placed = batch_rows.place(job.mesh, batch | {"signals_B": signals_B})
            signals_B = placed.pop("signals_B")
            state, report, signal = job.step(state, placed, signals_B)
            signum = 0 if waiting is None else account(*waiting)
            waiting = report, signal
            progressed.step += 1
            if progressed.step == first_step + 1:
                jax.block_until_ready(report)
                progress.compiled()
            last = progressed.step == config.steps
            log, evaluates, saves = (
                last or progressed.step % every == 0
                for every in (config.log_every, config.eval_every, config.checkpoint_every)
            )
            if not (log or evaluates or saves or signum):
                continue
            signum = max(signum, account(*waiting))
            waiting = None
            if log:
                line = log_interval(job, state, progressed, report, history)
                progress.interval(line, first_step)
                for alarm in line.get("alarms", ()):
                    progress.say(f"alarm    {alarm['words']}")
            score = None
            if evaluates:
                score = evaluate_all(job, state, progressed, progress.say)
                signum = max(signum, job.processes.largest(job.stop.check() or 0))
            if saves or signum or (score is not None and score <= progressed.best):
                place = join_states(job.processes.gather(job.batches.get_state()))
                data = {"text": job.task.description, "place": place}
                job.checkpoints.save(progressed.step, state, progressed.to_json(data), score)
            if signum:
                job.checkpoints.wait()
                job.processes.leave()
                progress.say(
                    f"{Stopped(signum).name}: saved step {progressed.step} in {job.run.path};"
                    f" the same command goes on from there."
                )
                raise Stopped(signum)
            clock = time.monotonic()
    finally:
        progress.close()
    return state


def log_interval(
    job: Job,
    state: TrainState,
    progressed: Progressed,
    report: StepReport,
    history: telemetry.History,
) -> dict[str, Any]:
    """Write the line of training metrics and the load file of the interval that ends here."""
    totals = progressed.window
    line = {
        "step": progressed.step,
        "split": "train",
        job.measure.unit: progressed.tokens,
        **metrics.loss_metrics(totals),
        **metrics.router_metrics(totals, job.config.model.moe.num_experts),
        "gradient_norm": totals["gradient_norm"] / max(1, totals["parts"]),
        "learning_rate": float(report.learning_rate),
        "skipped_updates": int(report.skipped),
        f"{job.measure.unit}_per_second": totals["targets"] / progressed.window_seconds,
        "seconds": progressed.seconds,
    }
    if "asked_LE" in totals:
        routers = job.router_arrays(state.params, state.bias_LE)
        arrays = telemetry.interval_arrays(totals, routers, job.config.model)
        job.run.write_load(progressed.step, **arrays)
    if job.run.owner:
        line = history.judged(line, totals.get("asked_LE"), job.config)
    job.run.append_metrics(line)
    job.board.write(line, totals.get("asked_LE"))
    progressed.window, progressed.window_seconds = None, 0.0
    return line


def evaluate_all(
    job: Job, state: TrainState, progressed: Progressed, say: Callable[[str], None]
) -> float:
    """Evaluate on what is held out and write the line; returns the measure."""
    started, totals, chosen_LBNE, counts = time.monotonic(), None, None, None
    for batch in job.task.validation_batches(
        batch_rows.process_rows(job.mesh, job.config.data.eval_batch_size)
    ):
        placed = batch_rows.place(job.mesh, batch)
        report, chosen, of_batch = job.eval_step(state.params, state.bias_LE, placed)
        chosen_LBNE = chosen if totals is None else chosen_LBNE  # of the first batch
        totals = metrics.add(totals, metrics.totals_of_batch(report))
        counts = metrics.add_counts(counts, of_batch)
    if totals is None:
        raise RunError("the validation text gives no tokens: nothing can be evaluated on it.")
    line = {
        "step": progressed.step,
        "split": "validation",
        **metrics.loss_metrics(totals),
        **metrics.router_metrics(totals, job.config.model.moe.num_experts),
        **saturation(job, progressed.step, chosen_LBNE),
        **metrics.size(totals),
        "seconds": time.monotonic() - started,
    }
    job.run.append_metrics(line)
    job.board.write(line)
    if counts is not None:
        job.run.write_classes(progressed.step, **counts)
    say(f"step {progressed.step}  validation: {metrics.in_words(line)}")
    score = line[job.measure.key]
    progressed.best = min(progressed.best, score)
    return score


def saturation(
    job: Job, step: int, chosen_LBNE: jax.Array | None, tokens: int = 8192, bits: int = 2**23
) -> dict[str, float]:
    """Keep who chose whom in the first ``tokens`` tokens of the validation text, or as many as make
    1 MiB, and compare it with the evaluation before: the share of choices that are the same, mean
    over layers.
    """
    if chosen_LBNE is None:
        return {}
    L, _, N, E = chosen_LBNE.shape
    tokens = max(1, min(tokens, bits // (L * E)))
    chosen_LBNE = np.asarray(job.first_choices(chosen_LBNE, max(1, tokens // N), min(tokens, N)))
    if not job.run.owner:
        return {}
    earlier_LBNE = job.run.last_choices()
    job.run.write_choices(step, chosen_LBNE)
    if earlier_LBNE is None or earlier_LBNE.shape != chosen_LBNE.shape:
        return {}
    return {"router_saturation": float(balance.saturation(chosen_LBNE, earlier_LBNE).mean())}


def finish(job: Job, state: TrainState, progressed: Progressed) -> None:
    """Write the sample and the report, and say where all is."""
    job.checkpoints.wait()
    talks = isinstance(job.task, LanguageTask) and job.config.run.sample_tokens
    job.run.write_sample(sample(job, state) if talks else None)
    if job.run.owner:
        write_report(job.run.path)
    say(
        f"Trained {progressed.step:,} steps, {short(progressed.tokens)} {job.measure.unit}, in"
        f" {duration(progressed.seconds)}."
    )
    say_result(job)


def sample(job: Job, state: TrainState) -> str | None:
    """The text of the report: the prompt and what the model makes of it; None, and a line that says
    why, if it cannot.
    """
    run, length, tokenizer = job.config.run, job.config.data.sequence_length, job.task.tokenizer
    try:
        generator = Generator(
            job.config.model,
            job.config.mesh,
            state.params,
            state.bias_LE,
            mesh=job.mesh,
            tokenizer=tokenizer,
            ends=frozenset([tokenizer.boundary]),
            window=length,
        )
    except ConfigError as error:
        say(f"no sample: {error}")
        return None
    prompt, _ = tokenizer.encode(run.sample_prompt.encode())
    prompt = np.concatenate([[tokenizer.boundary], prompt])[-length:].astype(np.int32)
    sampling = Sampling(tokens=run.sample_tokens, temperature=run.sample_temperature, seed=run.seed)
    (continuation,) = generator.generate([prompt], sampling).continuations
    return run.sample_prompt + continuation.text


def say_result(job: Job) -> None:
    """The last lines: the figures, the files, what to do next."""
    if not job.run.owner:
        return
    line = job.run.last_metrics("validation")
    steps = max(job.config.run.steps, line["step"] if line else 0)
    say(
        f"report      {job.run.report}\nmetrics     {job.run.metrics_file}\n"
        f"checkpoints {job.run.checkpoints} (the last {job.config.run.keep_checkpoints}, the best)"
    )
    say(
        f"next        open the report; `--run.steps {2 * steps}` goes on training;"
        f" another --run.directory starts afresh"
    )
    if line and line["loss"] is not None:
        say(metrics.result_in_words(line))
