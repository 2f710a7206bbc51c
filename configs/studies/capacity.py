"""Slots of an expert, from half of its fair share in training to no limit.

    moejax study configs/studies/capacity.py

Evaluation has twice the fair share in all but the last, which has no limit there, either.
"""

from pathlib import Path

from moejax.config import load_config_file
from moejax.study import Study, with_moe

ROOMY = {"capacity_factor": None, "eval_capacity_factor": None, "dispatch": "grouped"}


def get_study() -> Study:
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    factors = (0.5, 1.0, 1.25, 2.0)
    return Study(
        title="Capacity",
        question="What do dropped choices cost, and what do slots that stay empty?",
        runs={f"capacity-{factor:g}": with_moe(short, capacity_factor=factor) for factor in factors}
        | {"dropless": with_moe(short, **ROOMY)},
        seeds=(0, 1, 2),
        baseline="capacity-1.25",
    )
