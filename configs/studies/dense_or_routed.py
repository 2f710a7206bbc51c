"""The routed quickstart against its dense twin of equal active size, in equal steps, three seeds.

moejax study configs/studies/dense_or_routed.py
"""

import dataclasses
from pathlib import Path

from moejax.config import load_config_file
from moejax.study import Study, with_moe


def get_study() -> Study:
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    run = dataclasses.replace(short.run, steps=600, eval_every=50, checkpoint_every=300)
    routed = dataclasses.replace(short, run=run)
    return Study(
        title="Dense or routed",
        question="How many fewer steps does a routed model need to reach its dense twin's loss?",
        runs={"dense": with_moe(routed, every=0), "routed": routed},
        seeds=(0, 1, 2),
        baseline="dense",
    )
