"""Collapse, and what prevents it: one model, the balance loss from none to much, two ways without a
loss, and what remains of it all where nothing is dropped, as capacity holds crowded experts back.

    moejax study configs/studies/balancing.py
"""

from pathlib import Path

from moejax.config import BalanceConfig, load_config_file
from moejax.study import Study, with_moe

METHODS = {
    "alpha-0": {},
    "alpha-0.001": {"loss_weight": 0.001},
    "alpha-0.01": {"loss_weight": 0.01},
    "alpha-0.1": {"loss_weight": 0.1},
    "loss-free-sign": {"bias_update": "sign", "bias_rate": 0.01},
    "quantile": {"bias_update": "quantile"},
}
DROPLESS = ("alpha-0", "alpha-0.01")
ROOMY = {"capacity_factor": None, "eval_capacity_factor": None, "dispatch": "grouped"}


def get_study() -> Study:
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    runs = {
        name: with_moe(short, balance=BalanceConfig(**{"loss_weight": 0.0} | settings))
        for name, settings in METHODS.items()
    }
    runs |= {f"{name}-dropless": with_moe(runs[name], **ROOMY) for name in DROPLESS}
    return Study(
        title="Balancing",
        question="What does the balance loss cost, what happens without it, and what do ways"
        " without a loss give?",
        runs=runs,
        seeds=(0, 1, 2),
        baseline="alpha-0.01",
    )
