"""Finer experts, and shared ones, at equal active and equal total width: names are experts x hidden
width, and the experts that a token meets.

    moejax study configs/studies/granularity.py

14 minutes on two CPU cores, shared (2026-11-22, Python 3.11.7, jax 0.10.2). Bits per
byte against 8x128-top2 (2.178), with the same seed: 16x64-top4 -0.060..-0.035, 32x32-top8
-0.046..-0.029, 15x64-top3-shared1 -0.004..+0.040.
"""

from pathlib import Path

from moejax import Study, changed, load_config_file

SIZES = {
    "8x128-top2": {"num_experts": 8, "hidden_size": 128, "top_k": 2},
    "16x64-top4": {"num_experts": 16, "hidden_size": 64, "top_k": 4},
    "32x32-top8": {"num_experts": 32, "hidden_size": 32, "top_k": 8},
    "15x64-top3-shared1": {
        "num_experts": 15,
        "hidden_size": 64,
        "top_k": 3,
        "shared_experts": 1,
    },
}


def get_study() -> Study:
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    return Study(
        title="Granularity",
        question="Do finer experts help, and does one that every token shares?",
        runs={name: changed(short, {"model.moe": sizes}) for name, sizes in SIZES.items()},
        seeds=(0, 1, 2),
        baseline="8x128-top2",
    )
