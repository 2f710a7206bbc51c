"""Collapse, and what prevents it: one model, the balance loss from none to much, and two ways
without a loss. (`balancing_dropless.py`: what remains of it all where nothing is dropped.)

    moejax study configs/studies/balancing.py

12 minutes on two CPU cores (2026-11-23, Python 3.11.7, jax 0.10.2). Bits per
byte against alpha 0.01 (2.178), with the same seed, and the fullest expert over the mean, less 1:
alpha 0 +0.026..+0.057 and 1.75, alpha 0.001 +0.010..+0.031 and 1.17, alpha 0.1 -0.029..+0.020 and
0.17, loss-free -0.018..+0.007 and 0.28, quantile -0.023..-0.014 and 0.19; alpha 0.01 itself 0.26.
"""

from pathlib import Path

from moejax import Study, changed, load_config_file

METHODS = {
    "alpha-0": {},
    "alpha-0.001": {"loss_weight": 0.001},
    "alpha-0.01": {"loss_weight": 0.01},
    "alpha-0.1": {"loss_weight": 0.1},
    "loss-free-sign": {"bias_update": "sign", "bias_rate": 0.01},
    "quantile": {"bias_update": "quantile"},
}


def get_study() -> Study:
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    runs = {
        name: changed(short, {"model.moe.balance": {"loss_weight": 0.0} | settings})
        for name, settings in METHODS.items()
    }
    return Study(
        title="Balancing",
        question="What does the balance loss cost, what happens without it, and what do ways"
        " without a loss give?",
        runs=runs,
        seeds=(0, 1, 2),
        baseline="alpha-0.01",
    )
