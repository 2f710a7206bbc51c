"""More experts at equal active FLOPs: the dense twin and 4 to 32 experts of which a token meets 2.

moejax study configs/studies/number_of_experts.py
"""

from pathlib import Path

from moejax.config import load_config_file
from moejax.study import Study, with_moe


def get_study() -> Study:
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    return Study(
        title="Number of experts",
        question="How much do more experts help, of which a token meets two of equal width?",
        runs={"dense": with_moe(short, every=0)}
        | {f"{E}-experts": with_moe(short, num_experts=E) for E in (4, 8, 16, 32)},
        seeds=(0, 1, 2),
        baseline="dense",
    )
