"""The routed quickstart against its dense twin of equal active size, in equal steps, three seeds.

    moejax study configs/studies/dense_or_routed.py

16 minutes on two CPU cores, shared (2026-11-22, Python 3.11.7, jax 0.10.2): 1.754 bits
per byte dense (1.749..1.764) and 1.710 routed (1.704..1.713) after 600 steps. The routed model is
where the dense one ends after 505 steps (492..517), 0.84 of its steps.
"""

from pathlib import Path

from moejax import Study, changed, load_config_file


def get_study() -> Study:
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    routed = changed(short, {"run.steps": 600, "run.eval_every": 50, "run.checkpoint_every": 300})
    return Study(
        title="Dense or routed",
        question="How many fewer steps does a routed model need to reach its dense twin's loss?",
        runs={"dense": changed(routed, {"model.moe.every": 0}), "routed": routed},
        seeds=(0, 1, 2),
        baseline="dense",
    )
