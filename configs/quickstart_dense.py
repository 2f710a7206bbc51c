"""The dense twin of the quickstart: the same model with one change, no routed layer.

    python train.py --config configs/quickstart_dense.py

It has 1.679 bits per byte after the quickstart's 1650 steps, and 1.638 after 2300 (`--run.steps
2300`; docs/benchmarks.md). A step takes 0.8 of the quickstart's. In equal time the quickstart is
better (docs/studies.md).
"""

import quickstart

from moejax.config import Config, changed


def get_config() -> Config:
    return changed(quickstart.get_config(), {"model.moe.every": 0})
