"""What collapse costs where nothing is dropped, as capacity holds crowded experts back.

    moejax study configs/studies/balancing_dropless.py

5 minutes on two CPU cores (2026-11-23, Python 3.11.7, jax 0.10.2): without a balance loss 2.177
bits per byte and 2.65 times the mean load on the fullest expert, with alpha 0.01 2.159 and 1.27.
"""

import balancing

from moejax import Study, changed

DROPLESS = ("alpha-0", "alpha-0.01")
ROOMY = {"capacity_factor": None, "eval_capacity_factor": None, "dispatch": "grouped"}


def get_study() -> Study:
    runs = balancing.get_study().runs
    return Study(
        title="Balancing without drops",
        question="What does the balance loss give where every expert has room for all?",
        runs={f"{name}-dropless": changed(runs[name], {"model.moe": ROOMY}) for name in DROPLESS},
        seeds=(0, 1, 2),
        baseline="alpha-0.01-dropless",
    )
