"""The vision transformer of `configs/vit_moe.py` with soft experts (Puigcerver et al. 2023).

pip install -e '.[images]'
python train.py --config configs/soft_moe.py
"""

from dataclasses import replace

import vit_moe

from moejax.config import BalanceConfig, Config


def get_config() -> Config:
    config = vit_moe.get_config()
    soft = replace(
        config.model.moe,
        router="soft",
        group_size=config.model.image_tokens,  # slots mix the patches of one image
        capacity_factor=1.0,
        eval_capacity_factor=1.0,
        seating="position",
        balance=BalanceConfig(loss_weight=0.0),  # every slot is used by construction
    )
    return replace(config, model=replace(config.model, moe=soft))
