"""Switch-Base as a decoder, with the sizes of Table 9 of Fedus et al. 2021 (Switch Transformers).

    python train.py --config configs/switch_base.py

One expert of 128 in every second layer, capacity factor 1.25, alpha 0.01, 2^20 tokens a step. The
paper's 12 encoder and 12 decoder layers stand here in one decoder of 24, without cross-attention:
7.4 B parameters as in the paper, 196 M of them active (the paper's T5-Base: 223 M). The paper
trains for 550k steps of span corruption on C4 (section 4.1), so its losses are no figures for a
language model; ours has not been trained at this size.

C4 is prepared by TFDS with TensorFlow and Apache Beam (`pip install 'moejax[tensorflow]' apache-
beam`) and read without them. The tokenizer is T5's `tokenizer.json`, which ships with every
released T5.
"""

from moejax.config import (
    BalanceConfig,
    Config,
    DataConfig,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    RunConfig,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            num_layers=24,
            width=768,
            num_heads=12,
            head_size=64,
            qk_norm=False,
            activation="geglu",
            vocab_size=32128,
            tie_embeddings=True,
            dtype="bfloat16",
            remat="layer",
            moe=MoEConfig(
                router="switch",
                num_experts=128,
                top_k=1,
                hidden_size=2048,
                every=2,
                group_size=512,
                capacity_factor=1.25,
                eval_capacity_factor=2.0,
                balance=BalanceConfig(loss_weight=0.01),
            ),
        ),
        data=DataConfig(
            source="tfds",
            tfds_name="c4/en",
            tokenizer="t5/tokenizer.json",
            sequence_length=512,
            batch_size=2048,
            eval_batch_size=256,
        ),
        optim=OptimConfig(learning_rate=1e-3, warmup_fraction=0.02, weight_decay=0.1),
        run=RunConfig(
            steps=550_000,
            log_every=100,
            eval_every=5000,
            eval_batches=100,
            checkpoint_every=5000,
            sample_prompt="The ",
        ),
    )
