"""The quickstart in 200 steps, evaluated five times on 8 batches: what the studies vary.

    python train.py --config configs/quickstart_short.py

The learning rate's schedule stretches with the steps: a short run is a whole one, not the beginning
of a long one.
"""

import quickstart

from moejax.config import Config, changed


def get_config() -> Config:
    short = {
        "steps": 200,
        "log_every": 10,
        "eval_every": 40,
        "eval_batches": 8,
        "part_every": None,
        "checkpoint_every": 200,
        "sample_tokens": 0,
    }
    return changed(quickstart.get_config(), {"run": short})
