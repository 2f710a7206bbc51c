"""How often each token occurs, for routers with a table that is balanced by frequency."""

from itertools import islice
from pathlib import Path

import numpy as np

from moejax.config.change import changed
from moejax.config.config import Config
from moejax.config.errors import UserError
from moejax.config.moe import MOST_COUNTS
from moejax.inference.peek import peek_config
from moejax.runtime.processes import Processes
from moejax.train.base_model import find_beginning
from moejax.train.tasks import LanguageTask, Task

COUNTED, BATCHES = 2**20, 512
"""So many tokens are counted, of so many batches at most."""


def find_token_counts(config: Config, task: Task, run: Path, processes: Processes) -> Config:
    """``config`` with ``model.moe.token_counts``, if its router needs them and it has none: those
    of this ``run``, if it has begun; of the model that it begins from; or of the first batches of
    its own text, which are the same in all processes and at every start.
    """
    model = config.model
    if not model.moe.built_router.counts_tokens or model.moe.token_counts is not None:
        return config
    if not any(model.routed_layers) or not isinstance(task, LanguageTask):
        return config
    counts = None
    if processes.first:
        places = [run] if any((run / "checkpoints").glob("[0-9]*")) else []
        places += [] if config.run.init_from is None else [find_beginning(config)]
        counts = next(filter(None, map(_read_counts, places)), None)
        counts = list(counts or count_tokens(config, task))
    return changed(config, {"model.moe.token_counts": tuple(processes.agree(counts) or ())})


def _read_counts(place: Path) -> tuple[int, ...] | None:
    """Those of a run or a model; None where there are none, or no settings that can be read."""
    try:
        model = peek_config(place)
    except (UserError, OSError):
        return None
    return None if model is None else model.moe.token_counts


def count_tokens(config: Config, task: LanguageTask) -> tuple[int, ...]:
    """How often each id occurs in the first batches of the training, by id; of the first ids."""
    batch_size = config.data.batch_size
    batches = task.train_batches(np.arange(batch_size))
    enough = min(BATCHES, -(-COUNTED // (batch_size * config.data.sequence_length)))
    counts_I = np.zeros(task.vocab_size, np.int64)
    for batch in islice(batches, enough):
        real_R = batch["inputs"][batch["segments"] > 0]
        counts_I += np.bincount(real_R, minlength=task.vocab_size)
    batches.close()
    return tuple(np.trim_zeros(counts_I[:MOST_COUNTS], "b").tolist())
