"""The dense twin of the quickstart: the same model with one change, no routed layer.

    python train.py --config configs/quickstart_dense.py

@DENSE@
"""

import dataclasses

import quickstart

from moejax.config import Config


def get_config() -> Config:
    config = quickstart.get_config()
    moe = dataclasses.replace(config.model.moe, every=0)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, moe=moe))
