"""How often each token occurs, for routers with a table that is balanced by frequency.

Letters: I: ids of tokens.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np

from moejax.config.change import changed
from moejax.config.config import Config
from moejax.config.moe import MOST_COUNTS
from moejax.runtime.processes import Processes
from moejax.train.tasks import LanguageTask, Task

COUNTED, BATCHES = 2**20, 512
"""So many tokens are counted, of so many batches at most."""


def find_token_counts(
    config: Config,
    task: Task,
    processes: Processes,
    read_kept: Callable[[], tuple[int, ...] | None],
) -> Config:
    """``config`` with ``model.moe.token_counts``, if its router needs them and it has none: what
    ``read_kept`` gives; if that is None, those of the first batches of its own text, which are the
    same at every start and with every seed. Process 0 finds them for all.
    """
    model = config.model
    if not model.moe.built_router.counts_tokens or model.moe.token_counts is not None:
        return config
    if not any(model.routed_layers) or not isinstance(task, LanguageTask):
        return config
    counts = list(read_kept() or count_tokens(config, task)) if processes.first else []
    return changed(config, {"model.moe.token_counts": tuple(processes.agree(counts))})


def count_tokens(config: Config, task: LanguageTask) -> tuple[int, ...]:
    """How often each id occurs in the first batches of its training text, by id; of the first ids.
    Whatever the seed, these are the batches of seed 0.
    """
    batch_size = config.data.batch_size
    alike = replace(task, config=changed(config, {"data.seed": 0}))
    batches = alike.train_batches(np.arange(batch_size))
    enough = min(BATCHES, -(-COUNTED // (batch_size * config.data.sequence_length)))
    counts_I = np.zeros(task.vocab_size, np.int64)
    for batch in islice(batches, enough):
        real_R = batch["inputs"][batch["segments"] > 0]
        counts_I += np.bincount(real_R, minlength=task.vocab_size)
    batches.close()
    return tuple(np.trim_zeros(counts_I[:MOST_COUNTS], "b").tolist())
