"""What the studies vary: the quickstart with plainer layers, in 200 steps, evaluated five times on
8 batches.

    python train.py --config configs/quickstart_short.py

A token meets 2 of 8 experts and no shared one, so the router chooses all experts that it meets. The
quickstart itself has shared experts and larger groups, since that is quicker. The learning rate's
schedule stretches with the steps: a short run is a whole one, not the beginning of a long one.
"""

import quickstart

from moejax.config import Config, changed


def get_config() -> Config:
    plain = {
        "num_experts": 8,
        "top_k": 2,
        "hidden_size": 128,
        "shared_experts": 0,
        "group_size": 64,
        "capacity_factor": 1.25,
    }
    short = {
        "steps": 200,
        "log_every": 10,
        "eval_every": 40,
        "eval_batches": 8,
        "part_every": None,
        "checkpoint_every": 200,
        "sample_tokens": 0,
    }
    return changed(quickstart.get_config(), {"model.moe": plain, "run": short})
