"""Slots of an expert, from half of its fair share in training to no limit.

    moejax study configs/studies/capacity.py

Evaluation has twice the fair share in all but the last, which has no limit there, either. Two CPU
cores, shared (2026-11-22, Python 3.11.7, jax 0.10.2): bits per byte against 1.25 (2.178), with the
same seed, are +0.088..+0.111 with 0.5, +0.004..+0.028 with 1, -0.038..-0.007 with 2, -0.027..-0.009
without a limit.
"""

from pathlib import Path

from moejax import Study, changed, load_config_file

ROOMY = {"capacity_factor": None, "eval_capacity_factor": None, "dispatch": "grouped"}


def get_study() -> Study:
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    factors = (0.5, 1.0, 1.25, 2.0)
    return Study(
        title="Capacity",
        question="What do dropped choices cost, and what do slots that stay empty?",
        runs={
            f"capacity-{factor:g}": changed(short, {"model.moe.capacity_factor": factor})
            for factor in factors
        }
        | {"dropless": changed(short, {"model.moe": ROOMY})},
        seeds=(0, 1, 2),
        baseline="capacity-1.25",
    )
