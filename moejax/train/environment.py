"""Where a run takes place: its processes, its mesh, its directory, and signals to stop."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from moejax.config.config import Config
from moejax.config.paths import check_plain, expand_home
from moejax.models.training_room import check_training_room
from moejax.runs.run_directory import RunDirectory
from moejax.runtime import device_fit, device_mesh
from moejax.runtime.processes import Processes
from moejax.runtime.stop import StopSignals, last_act
from moejax.runtime.writing import writing_to

NOTHING_NEW = "stopped before the first step; there is nothing new to save."


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a run takes place."""

    processes: Processes
    stop: StopSignals
    mesh: Mesh
    run: RunDirectory


@contextlib.contextmanager
def enter(config: Config, name: str) -> Iterator[Environment]:
    """Join the processes, listen to signals, make the mesh and lock the directory, until the end of
    the ``with``. Raises ``UserError`` for what does not fit, or cannot be written.
    """
    elsewhere = writing_to("--run.directory DIR")
    with (
        Processes(config.distributed) as processes,
        StopSignals(NOTHING_NEW) as stop,
        last_act(processes.tell_of_signal),
        elsewhere,
    ):
        mesh = device_mesh.make_mesh(config.mesh)
        device_fit.check_fits(config, mesh)
        check_training_room(config, config.model.vocab_size or 0, mesh.shape)
        name = expand_home("--run.directory", config.run.directory or f"runs/{name}")
        directory = Path(name)
        check_plain("--run.directory", directory)
        with RunDirectory(directory, owner=processes.first) as run, jax.set_mesh(mesh):
            run.check(config)
            yield Environment(processes=processes, stop=stop, mesh=mesh, run=run)
