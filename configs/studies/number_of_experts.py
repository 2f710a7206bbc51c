"""More experts at equal active FLOPs: the dense twin and 4 to 32 experts of which a token meets 2.

    moejax study configs/studies/number_of_experts.py

13 minutes on two CPU cores, shared (2026-11-22, Python 3.11.7, jax 0.10.2). Bits per
byte against dense (2.214), with the same seed: 4 experts -0.028..+0.019, 8 -0.054..-0.020, 16
-0.082..-0.018, 32 -0.078..-0.019.
"""

from pathlib import Path

from moejax import Study, changed, load_config_file


def get_study() -> Study:
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    return Study(
        title="Number of experts",
        question="How much do more experts help, of which a token meets two of equal width?",
        runs={"dense": changed(short, {"model.moe.every": 0})}
        | {f"{E}-experts": changed(short, {"model.moe.num_experts": E}) for E in (4, 8, 16, 32)},
        seeds=(0, 1, 2),
        baseline="dense",
    )
