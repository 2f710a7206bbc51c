"""Collapse, and what prevents it: one model, one seed, seven ways of balancing, and none.

The last three drop nothing: capacity holds crowded experts back, and so hides a part of collapse.

    moejax study configs/studies/balancing.py
"""

import dataclasses
from pathlib import Path

from moejax.config import BalanceConfig, Config, load_config_file
from moejax.study import Study

METHODS = {
    "none": {},
    "alpha-0.001": {"loss_weight": 0.001},
    "alpha-0.01": {"loss_weight": 0.01},
    "alpha-0.01-sequence": {"loss_weight": 0.01, "scope": "sequence"},
    "importance": {"importance_loss_weight": 0.01},
    "loss-free-sign": {"bias_update": "sign", "bias_rate": 0.01},
    "loss-free-proportional": {"bias_update": "proportional", "bias_rate": 0.02},
    "quantile": {"bias_update": "quantile"},
}
DROPLESS = ("none", "alpha-0.01", "loss-free-sign")


def get_study() -> Study:
    base = load_config_file(Path(__file__).parents[1] / "quickstart.py")
    run = dataclasses.replace(
        base.run, steps=400, log_every=10, eval_every=400, eval_batches=20, sample_tokens=0
    )

    def config(settings: dict, **moe: object) -> Config:
        balance = BalanceConfig(**{"loss_weight": 0.0} | settings)
        moe = dataclasses.replace(base.model.moe, balance=balance, **moe)
        return dataclasses.replace(base, model=dataclasses.replace(base.model, moe=moe), run=run)

    roomy = {"capacity_factor": None, "eval_capacity_factor": None, "dispatch": "grouped"}
    runs = {name: config(settings) for name, settings in METHODS.items()}
    runs |= {f"{name}-dropless": config(METHODS[name], **roomy) for name in DROPLESS}
    return Study(
        title="Balancing",
        question="Do experts die without a balancing method, and what does each method cost?",
        runs=runs,
    )
