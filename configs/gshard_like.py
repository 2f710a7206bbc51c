"""GShard's smallest model, MoE(128E, 12L) of Table 1 of Lepikhin et al. 2020, as a decoder.

    python train.py --config configs/gshard_like.py

Two experts of 128 in every second layer, width 1024, experts of 8192 with ReLU, 16 heads of 128.
The paper counts 12.5 B parameters for its translation model; this decoder has 13.1 B, 404 M of them
active. GShard takes its second expert at random in proportion to its weight; here both are taken
always. The paper's figures are BLEU scores of 100 language pairs, so they say nothing about a
language model, and ours has not been trained at this size.

C4 is prepared by TFDS with TensorFlow and Apache Beam (`pip install 'moejax[tensorflow]' apache-
beam`) and read without them; text is read as bytes.

The optimizer, the evaluations and the checkpoints are those of `configs/switch_base.py`.
"""

import switch_base

from moejax.config import BalanceConfig, Config, ModelConfig, MoEConfig, changed


def get_config() -> Config:
    return changed(
        switch_base.get_config(),
        {
            "model": ModelConfig(
                num_layers=12,
                width=1024,
                num_heads=16,
                head_size=128,
                qk_norm=False,
                activation="relu",
                dense_hidden_size=8192,
                dtype="bfloat16",
                remat="layer",
                moe=MoEConfig(
                    router="top_k",
                    num_experts=128,
                    top_k=2,
                    hidden_size=8192,
                    every=2,
                    group_size=1024,
                    capacity_factor=1.0,
                    eval_capacity_factor=2.0,
                    balance=BalanceConfig(loss_weight=0.01),
                ),
            ),
            "data": {"tokenizer": "bytes", "sequence_length": 1024, "batch_size": 1024},
            "run.steps": 100_000,
        },
    )
