"""Does routing pay on the quickstart? A routed model against the dense twin, for as many steps as
take the dense one's time, tuned alike, five seeds.

    moejax bench steps configs/studies/quickstart_pays.py      # on a quiet machine
    moejax study configs/studies/quickstart_pays.py

The first command says what a step of each run takes. STEP has what was measured here, over a step
of the dense twin; on another machine, put its figure there first. All are evaluated eleven times,
so the table also has the seconds after which each run is where the dense one ends.

On 2026-11-29 `16x64-shared` was better than the dense twin by 0.0151 bits per byte (95 % interval:
0.0064 to 0.0238), and `16x64` was a tie; docs/studies.md has the table.

`16x64-shared` is the quickstart as it is: of each token's four experts two are chosen, and two are
every token's. So half as many rows go to experts and back as in `16x64`, at equal active FLOPs.
Both have finer experts than the quickstart had before: 2 of 8 experts of 128, whose step takes 1.47
times the dense one's. Their groups of 256 tokens drop fewer choices at random, so that as many
slots as choices are enough.
"""

from pathlib import Path

from moejax import Config, Study, changed, load_config_file

STEPS = 1650
"""Of the dense twin."""
STEP = {"16x64": 1.36, "16x64-shared": 1.25}
"""Time of a step over that of the dense twin (docs/benchmarks.md)."""
SHAPES: dict[str, dict[str, int]] = {"16x64": {"top_k": 4, "shared_experts": 0}, "16x64-shared": {}}
"""What they change in the layers of the quickstart."""


def get_run(quickstart: Config, steps: float, moe: dict) -> Config:
    """The quickstart of this shape, evaluated eleven times on a part of the text."""
    steps = round(steps)
    run = {"steps": steps, "part_every": None, "eval_every": steps // 11, "checkpoint_every": steps}
    return changed(quickstart, {"run": run | {"sample_tokens": 0}, "model.moe": moe})


def get_study() -> Study:
    quickstart = load_config_file(Path(__file__).parents[1] / "quickstart.py")
    routed = {
        name: get_run(quickstart, STEPS / STEP[name], shape) for name, shape in SHAPES.items()
    }
    return Study(
        title="Does the quickstart pay?",
        question="In the time of the dense twin, which model gets further?",
        runs={"dense": get_run(quickstart, STEPS, SHAPES["16x64"] | {"every": 0})} | routed,
        seeds=(1, 2, 3, 4, 5),
        baseline="dense",
        unlike_steps=True,
        tune={
            ("optim.learning_rate", "optim.muon_learning_rate"): (
                (0.01, 0.015),
                (0.02, 0.03),
                (0.04, 0.06),
            )
        },
    )
