"""What a training step of each shape of a study takes, all of them in turn on one machine.

A study's trainings may run on a busy machine, over days. What they cost is measured apart, when the
machine is quiet: the whole compiled step (model, gradient, optimizer) of every shape, one after the
other in each round, so that a slow moment hits all. Data come from memory: in training they are
made beside the steps.
"""

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh

import moejax
from moejax.config.checks import check
from moejax.config.config import Config
from moejax.config.paths import expand_home
from moejax.lab.bench.timing import interleave
from moejax.lab.frontier.rows import describe_shape
from moejax.lab.frontier.step_times import FILE, StepTime, StepTimes, write_step_times
from moejax.lab.study.definition import load_study_file
from moejax.runtime import batch_rows, device_mesh
from moejax.runtime.allocator import keep_freed_memory
from moejax.runtime.machine import describe_machine
from moejax.runtime.writing import writing_to
from moejax.train.prepare import make_learner, make_programs
from moejax.train.tasks import Task, open_task


@dataclass(frozen=True, kw_only=True)
class StepsBench:
    """The shapes of a study, and how often each is timed."""

    file: tyro.conf.Positional[Path]
    """Python file with get_study() -> Study."""
    output: Path | None = None
    """The file of the figures; by default step_times.json in the study's directory, studies/ and
    FILE's name."""
    rounds: int = 15
    """Timed rounds."""
    steps: int = 2
    """Steps of a shape in a round."""

    def __post_init__(self) -> None:
        if self.output is not None:
            object.__setattr__(self, "output", Path(expand_home("--output", str(self.output))))
        for name in ("rounds", "steps"):
            value = getattr(self, name)
            check(value > 0, f"--{name} must be greater than 0, not {value}.")

    @property
    def place(self) -> Path:
        """Where the figures are written."""
        return self.output or Path("studies", self.file.stem, FILE)


def measure(bench: StepsBench) -> dict[str, Any]:
    """Time all shapes and write the file. Returns the object that ``--json`` prints."""
    keep_freed_memory()  # as training does
    shapes, arms = list_shapes(load_study_file(bench.file).runs), {}
    first = next(iter(shapes.values()))
    mesh = device_mesh.make_mesh(first.mesh)
    task = open_task(first, bench.place.parent / "tokenizer")
    with jax.set_mesh(mesh):
        for number, (name, config) in enumerate(shapes.items(), 1):
            print(f"[{number}/{len(shapes)}] compiling {name}", file=sys.stderr, flush=True)
            arms[name] = make_arm(config, task, mesh, bench.steps)
        times = interleave(dict(arms), bench.rounds)
    wall, cpu = times.wall, times.cpu
    found = {
        name: StepTime(
            **{
                key: float(np.quantile(wall[name], share)) / bench.steps
                for key, share in (("low", 0.25), ("seconds", 0.5), ("high", 0.75))
            },
            processor_seconds=float(np.median(cpu[name])) / bench.steps,
        )
        for name in shapes
    }
    about = {
        "command": shlex.join(["moejax", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": bench.rounds,
        "steps_a_round": bench.steps,
        "machine": describe_machine(),
        "versions": {"jax": jax.__version__, "moejax": moejax.__version__},
    }
    with writing_to("--output FILE"):
        write_step_times(bench.place, StepTimes(shapes=found, about=about))
    return {
        "about": about,
        "file": str(bench.place),
        "shapes": {n: vars(t) for n, t in found.items()},
    }


def list_shapes(runs: Mapping[str, Config]) -> dict[str, Config]:
    """What is timed, by name: a run of each shape, and by its own name, too, any other run of that
    shape whose model is not the same in all.
    """
    found: dict[str, Config] = {}
    for run, config in runs.items():
        name = describe_shape(config).name
        if config.model != found.get(name, config).model:
            name = f"{name} ({run})"
        found.setdefault(name, config)
    return found


def make_arm(config: Config, task: Task, mesh: Mesh, steps: int) -> Callable[[], object]:
    """Trains a model of this shape by so many steps each time it is called, always on the same
    batch.
    """
    learner = make_learner(config, task.vocab_size, mesh)
    step = make_programs(config, learner, mesh).step
    rows = batch_rows.process_rows(mesh, config.data.batch_size)
    batch = next(task.train_batches(rows))
    signals_B = np.zeros(len(batch["segments"]), np.int32)
    placed = batch_rows.place_batch(mesh, batch | {"signals_B": signals_B})
    state = jax.jit(learner.init, out_shardings=learner.shardings)()

    def run() -> object:
        nonlocal state
        for _ in range(steps):
            state, report = step(state, placed)
        return report

    jax.block_until_ready(run())  # compiles
    return run


def report(result: dict[str, Any]) -> str:
    """A line for each shape, and the place of the file."""
    lines = [f"{'shape':<24}{'ms a step':>12}{'quartiles':>20}{'processor ms':>14}"]
    for name, one in result["shapes"].items():
        ends = f"{1e3 * one['low']:.1f} to {1e3 * one['high']:.1f}"
        lines.append(
            f"{name:<24}{1e3 * one['seconds']:>12.1f}{ends:>20}"
            f"{1e3 * one['processor_seconds']:>14.1f}"
        )
    return "\n".join([*lines, f"file     {result['file']}"])
