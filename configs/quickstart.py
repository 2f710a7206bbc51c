"""A routed language model on Python's standard library, in minutes on two CPU cores.

    python train.py --config configs/quickstart.py

@QUICK@
"""

from moejax.config import Config, DataConfig, ModelConfig, MoEConfig, OptimConfig, RunConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            num_layers=3,
            width=128,
            num_heads=4,
            moe=MoEConfig(num_experts=8, top_k=2, hidden_size=128, group_size=64),
        ),
        data=DataConfig(sequence_length=128, batch_size=16, shuffle_window=75_000),
        optim=OptimConfig(
            optimizer="muon",
            learning_rate=0.02,
            muon_learning_rate=0.03,
            router_learning_rate=0.003,
            schedule="wsd",  # a short warm-up, then linear to 0
            warmup_fraction=0.02,
            decay_fraction=0.98,
        ),
        run=RunConfig(steps=1650, log_every=50, eval_every=825, checkpoint_every=550),
    )
