"""Mixtral 8x7B (Jiang et al. 2024): 46.7 B parameters, 12.9 B active, as released.

    python train.py --config configs/mixtral_8x7b.py
    moejax plan compile --config configs/mixtral_8x7b.py --target v5p:4x4x4

Eight experts on eight devices, parameters and optimizer state over all: 64 v5p chips hold it (the
second command says so without one). Sequences of 4,096 and a million tokens a step; the paper does
not give its training settings, so these are ordinary ones, and nothing has been trained at this
size here. The text is C4 by TFDS, the tokenizer the model's own `tokenizer.json`.

The text and the weight decay are those of `configs/switch_base.py`.
"""

import switch_base

from moejax.config import BalanceConfig, Config, MeshConfig, ModelConfig, MoEConfig, changed


def get_config() -> Config:
    return changed(
        switch_base.get_config(),
        {
            "model": ModelConfig(
                num_layers=32,
                width=4096,
                num_heads=32,
                num_kv_heads=8,
                qk_norm=False,
                rope_theta=1e6,
                norm_epsilon=1e-5,
                vocab_size=32000,
                dtype="bfloat16",
                remat="layer",
                moe=MoEConfig(
                    router="mixtral",
                    num_experts=8,
                    top_k=2,
                    hidden_size=14336,
                    group_size=1024,
                    capacity_factor=1.25,
                    balance=BalanceConfig(loss_weight=0.02, convention="hf"),
                ),
            ),
            "data": {
                "tokenizer": "mixtral/tokenizer.json",
                "sequence_length": 4096,
                "batch_size": 256,
                "eval_batch_size": 64,
            },
            "optim": {"learning_rate": 3e-4, "warmup_fraction": 0.01},
            "mesh": MeshConfig(expert=8, fsdp=True),
            "run": {
                "steps": 100_000,
                "log_every": 20,
                "eval_every": 1000,
                "eval_batches": 50,
                "checkpoint_every": 1000,
            },
        },
    )
