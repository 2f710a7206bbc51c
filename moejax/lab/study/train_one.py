"""One training of a study, in this process."""

import functools
import gc
import os
from collections.abc import Callable
from pathlib import Path

from moejax.config.config import Config
from moejax.config.errors import ConfigError, DivergedError, InUseError, RunError, UserError
from moejax.lab.study.trials import DIVERGED
from moejax.runtime.atomic_files import write_text

say = functools.partial(print, flush=True)


def train_one(
    config: Config,
    label: str,
    command: str,
    compiled: Path,
    beside: Callable[[float], str] | None = None,
) -> None:
    """Train to the end, or go on; that a run diverges is a result, kept in its directory.

    ``compiled``: a folder for compiled programs, which trainings share. Raises ``InUseError`` if
    another process trains it now, another ``UserError``, with the label, for what else does not
    work, and ``Stopped`` after a signal.
    """
    import jax  # late: a study that is finished does not start it

    from moejax.runtime.processes import joins
    from moejax.runtime.reuse import keep_compiled
    from moejax.train.training import train

    if joins(config.distributed, os.environ):
        raise ConfigError(
            "a study trains in one process, but here are several. Train its runs by train.py, each"
            " in all processes, or let DistributedConfig(initialize='never') keep them apart."
        )
    diverged = Path(str(config.run.directory)) / DIVERGED
    diverged.unlink(missing_ok=True)
    try:
        with keep_compiled(compiled):  # for the other seeds, whose steps are the same
            train(config, name=label, command=command, beside=beside)
    except DivergedError as error:
        write_text(diverged, f"{error}\n")
        say(f"{label} diverged: {error}")
    except InUseError:
        raise
    except UserError as error:
        raise RunError(f"{label}: {error}") from error
    jax.clear_caches()  # the compiled steps of one run are of no use to the next
    gc.collect()
