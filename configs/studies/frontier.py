"""When does routing pay? Loss against time and against FLOPs: dense and routed models of five
sizes, trained for 400 to 6250 steps, the schedule of each ending there.

    moejax bench steps configs/studies/frontier.py        # on a quiet machine
    moejax study configs/studies/frontier.py --at-once 2 --threads 1

The first command measures what a step of each shape takes; it may also come last. The second one
trains what is not yet trained, and writes the page, `frontier.json` and the rest.

Sizes are width x layers. Forms of equal active FLOPs: dense, a plain one (8 experts of which a
token meets 2), and a finer one, nearly the quickstart's, whose steps are cheaper
(`quickstart_pays.py`): half the width, 2 of 14 and 2 that all share. Which lengths a size is
trained for follows from the time: those that end between half a minute and 20 minutes and are not
far from the best size for it. At one length there are more experts (16 and 32 of which a token
meets 2) and other widths (4 of which it meets one, by the switch router; 16 of half the width, 4;
32 of a quarter, 8), which the laws of Clark et al. and of Krajewski et al. need.

Tuning: four settings of the learning rates, for 64x2, 96x3 and 128x3 of the three forms, with 400
steps and seed 0. Rule: longer trainings and other forms take the setting of the 400 steps of their
size and nearest form, larger sizes that of 128x3 (`tuned_as`); the schedule stretches with the
steps, the peak stays. So what is far from 400 steps is tuned less well, in all forms alike. Cheap
trainings have two seeds, dear ones have one. Held out, to be predicted: the longest trainings, and
a size that no law is fitted to, 160x4.

The text has 9.57 million tokens, a byte each: 6250 steps of 2,048 read it 1.3 times, all others at
most once.

73 trainings are judged and 36 tune. Two at a time, with one thread each on two slow CPU cores,
their clocks add up to 5 h 47 min, so about three hours (2026-11-30). What came out:
docs/frontier.md.
"""

from pathlib import Path
from typing import Any

from moejax import Config, Frontier, Study, changed, load_config_file

SIZES = {"64x2": (64, 2), "96x3": (96, 3), "128x3": (128, 3), "160x4": (160, 4), "192x4": (192, 4)}
FINER = {"num_experts": 14, "top_k": 2, "shared_experts": 2}
FORMS = {
    "dense": {"every": 0, "top_k": 2},
    "8top2": {"num_experts": 8, "top_k": 2},
    "14top2s2": FINER | {"group_size": 256, "capacity_factor": 1.0},
}
OTHERS = {
    "4top1": {"num_experts": 4, "top_k": 1, "router": "switch"},
    "16top2": {"num_experts": 16, "top_k": 2},
    "32top2": {"num_experts": 32, "top_k": 2},
    "16top4": {"num_experts": 16, "top_k": 4},
    "32top8": {"num_experts": 32, "top_k": 8},
}
"""Forms at one length alone. They take the setting of ``8top2``, the finest two of ``14top2s2``."""
LENGTHS = {
    "64x2": (400, 1000, 2500, 6250),
    "96x3": (400, 1000, 2500),
    "128x3": (400, 1000, 2500, 6250),
    "160x4": (1000,),
    "192x4": (400, 1000),
}
OTHER_LENGTHS = {("8top2", "64x2"): (400, 1000, 2500), ("8top2", "128x3"): (400, 1000, 2500)}
"""The plain form, whose steps are dearer, ends sooner."""
CHEAP = {"64x2": 2500, "96x3": 1000, "128x3": 400}
"""The longest training of a size that has two seeds."""
HELD_OUT = {"160x4": 1000, "128x3": 6250}
"""From which length on a size is held out."""


def get_run(form: str, size: str, steps: int) -> Config:
    width, layers = SIZES[size]
    moe: dict[str, Any] = (FORMS | OTHERS)[form]
    moe = moe | {"hidden_size": 2 * width // (moe["top_k"] + moe.get("shared_experts", 0))}
    model = {"width": width, "num_layers": layers, "num_heads": width // 32, "moe": moe}
    run = {"steps": steps, "log_every": steps // 20, "eval_every": steps, "eval_batches": None}
    run |= {"checkpoint_every": 500, "keep_checkpoints": 1}
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    return changed(short, {"model": model, "run": run})


def get_study() -> Study:
    cells = [
        (form, size, steps)
        for form in FORMS
        for size in SIZES
        for steps in OTHER_LENGTHS.get((form, size), LENGTHS[size])
    ]
    cells += [(form, size, 1000) for form in OTHERS for size in CHEAP]
    names = {cell: "{}-{}-{}".format(*cell) for cell in cells}

    def tuned_as(form: str, size: str) -> str:
        finer = "14top2s2" if form in ("16top4", "32top8") else "8top2"
        return names[finer if form in OTHERS else form, size if size in CHEAP else "128x3", 400]

    return Study(
        title="Frontier",
        question="When does routing pay: at which size, with how many and how fine experts, and"
        " from which budget on?",
        runs={name: get_run(*cell) for cell, name in names.items()},
        seeds=(1,),
        seeds_of={
            name: (1, 2)
            for (form, size, steps), name in names.items()
            if form in FORMS and steps <= CHEAP.get(size, 0)
        },
        tune={
            ("optim.learning_rate", "optim.muon_learning_rate"): (
                (0.01, 0.015),
                (0.02, 0.03),
                (0.04, 0.06),
                (0.08, 0.12),
            )
        },
        tuned_as={
            name: tuned_as(form, size)
            for (form, size, _), name in names.items()
            if name != tuned_as(form, size)
        },
        flops_tolerance=None,  # sizes differ; forms of one size are equal
        analysis=Frontier(
            held_out=tuple(
                name
                for (_, size, steps), name in names.items()
                if steps >= HELD_OUT.get(size, 10**6)
            )
        ),
    )
