"""When does routing pay? Loss against time and against FLOPs: dense and routed models of four
sizes, trained for 400 to 6250 steps, the schedule of each ending there.

    moejax bench steps configs/studies/frontier.py        # on a quiet machine
    moejax study configs/studies/frontier.py --at-once 2

The first command measures what a step of each shape takes; it may also come last. The second one
trains what is not yet trained, and writes the page, `frontier.json` and the rest.

Sizes are width x layers. Forms of equal active FLOPs: dense, the quickstart's (8 experts of which a
token meets 2), and a finer one (16 of half the width, 4). Which lengths a size is trained for
follows from the time: those that end between half a minute and 20 minutes and are not far from the
best size for it. At one length there are more experts (16 and 32 of which a token meets 2) and
other widths (4 of which it meets one, by the switch router; 32 of a quarter, 8), which the laws of
Clark et al. and of Krajewski et al. need.

Tuning: learning rates at three levels, for each size of the three forms, with 400 steps and seed 0.
Rule: longer trainings and other forms take the setting of the 400 steps of their size and nearest
form (`tuned_as`); the schedule stretches with the steps, the peak stays. So what is far from 400
steps is tuned less well, in all forms alike. Cheap trainings have two seeds, dear ones have one.
Held out, to be predicted: the longest trainings, and a size that no law is fitted to, 160x4.

The text has 9.57 million tokens, a byte each: 6250 steps of 2,048 read it 1.3 times, all others at
most once.

An estimate, not a measurement, from FLOPs, 11,000 tokens a second of the quickstart on two CPU
cores, and 1 / 1.42 of its time for a dense step: 72 trainings that are judged take 3.9 h one after
the other, tuning 0.8 h; compiling and evaluating come on top, some 10 to 20 s each of 108 times.
"""

from pathlib import Path

from moejax import Config, Frontier, Study, changed, load_config_file

SIZES = {"64x2": (64, 2), "96x3": (96, 3), "128x3": (128, 3), "160x4": (160, 4), "192x4": (192, 4)}
FORMS = {"dense": (0, 2), "8top2": (8, 2), "16top4": (16, 4)}
"""Experts, and those that a token meets; a dense layer is as wide as what it meets of them."""
OTHERS = {"4top1": "8top2", "16top2": "8top2", "32top2": "8top2", "32top8": "16top4"}
"""Forms at one length alone, and the form whose setting they take."""
LENGTHS = {
    "64x2": (400, 1000, 2500, 6250),
    "96x3": (400, 1000, 2500),
    "128x3": (400, 1000, 2500, 6250),
    "160x4": (1000,),
    "192x4": (400, 1000, 2500),
}
OTHER_LENGTHS = {
    ("dense", "192x4"): (400, 1000, 3500),
    ("8top2", "64x2"): (400, 1000, 2500),
    ("8top2", "128x3"): (400, 1000, 2500),
    ("8top2", "192x4"): (400, 1000),
}
"""A dense step is quicker, so more of them end in 20 minutes; the quickstart's form ends sooner."""
CHEAP = {"64x2": 2500, "96x3": 1000, "128x3": 400}
"""The longest training of a size that has two seeds."""
HELD_OUT = {"160x4": 1000, "128x3": 6250, "192x4": 2500}
"""From which length on a size is held out."""


def get_run(form: str, size: str, steps: int) -> Config:
    width, layers = SIZES[size]
    experts, top_k = map(int, form.split("top")) if "top" in form else FORMS[form]
    moe = {"num_experts": experts or 8, "top_k": top_k, "hidden_size": 2 * width // top_k}
    moe |= {"every": int(experts > 0), "router": "switch" if top_k == 1 else "top_k"}
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
        return names[OTHERS.get(form, form), "192x4" if size == "160x4" else size, 400]

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
