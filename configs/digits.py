"""A routed classifier of handwritten digits, in seconds on two CPU cores.

    pip install -e '.[images]'
    python train.py --config configs/digits.py

On 2 cores of an AMD EPYC (2026-11-23, Python 3.11.7, jax 0.10.2), with seeds 0, 1 and 2: 355, 350
and 355 of the 360 held-out images right (98.6 %, 97.2 %, 98.6 %) after 500 steps, in 24 s from
start to end; no dead expert.
"""

from moejax.config import (
    BalanceConfig,
    Config,
    DataConfig,
    ImageConfig,
    ImageDataConfig,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    RunConfig,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            kind="mlp",
            image=ImageConfig(size=8),
            num_layers=2,
            width=64,
            activation="gelu",
            moe=MoEConfig(
                num_experts=8,
                top_k=2,
                hidden_size=64,
                group_size=32,
                balance=BalanceConfig(loss_weight=0.01),
            ),
        ),
        data=DataConfig(
            source="digits",
            batch_size=256,
            eval_batch_size=512,
            images=ImageDataConfig(shift=1),
        ),
        optim=OptimConfig(learning_rate=3e-3, weight_decay=0.01, label_smoothing=0.1),
        run=RunConfig(steps=500, log_every=50, eval_every=100, checkpoint_every=250),
    )
