"""The routed quickstart against its dense twin of equal active size, in equal steps.

    moejax study configs/studies/dense_or_routed.py

Ten minutes on two CPU cores that did other work, too (2026-11-22, Python 3.11.7, jax 0.10.2): 1.679
bits per byte dense and 1.632 routed after 1650 steps, one seed.
"""

import dataclasses
from pathlib import Path

from moejax.config import Config, load_config_file
from moejax.study import Study

CONFIGS = Path(__file__).parents[1]


def get_study() -> Study:
    return Study(
        title="Dense or routed",
        question="Does routing pay at equal steps, with the same active size a token?",
        runs={
            "dense": often(load_config_file(CONFIGS / "quickstart_dense.py")),
            "routed": often(load_config_file(CONFIGS / "quickstart.py")),
        },
    )


def often(config: Config) -> Config:
    """The same training, evaluated and logged often enough for curves."""
    run = dataclasses.replace(config.run, eval_every=275, log_every=25)
    return dataclasses.replace(config, run=run)
