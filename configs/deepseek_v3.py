"""The shape of DeepSeek-V3 (DeepSeek-AI 2024, section 4.2): 671 B parameters, 37 B active.

    python train.py --config configs/deepseek_v3.py
    moejax plan compile --config configs/deepseek_v3.py --target v5p:8x8x16

61 layers of width 7,168, the first three dense; multi-head latent attention; 256 experts and a
shared one, 8 a token from 4 of 8 groups, by sigmoid scores with the bias of the loss-free balance
and a slight loss by sequence. No layer predicts a second token. Experts lie on 64 devices, as in
the paper. Nothing has been trained at this size here.

What is not said here is as in `configs/mixtral_8x7b.py`: the text, FSDP, and how often is logged
and evaluated.
"""

import mixtral_8x7b

from moejax.config import AttentionConfig, BalanceConfig, Config, ModelConfig, MoEConfig, changed


def get_config() -> Config:
    return changed(
        mixtral_8x7b.get_config(),
        {
            "model": ModelConfig(
                num_layers=61,
                width=7168,
                num_heads=128,
                head_size=128,
                qk_norm=False,
                attention=AttentionConfig(kv_rank=512, query_rank=1536, rope_head_size=64),
                dense_hidden_size=18432,
                vocab_size=129280,
                dtype="bfloat16",
                remat="layer",
                moe=MoEConfig(
                    router="deepseek_v3",
                    num_experts=256,
                    top_k=8,
                    hidden_size=2048,
                    shared_experts=1,
                    expert_groups=8,
                    kept_expert_groups=4,
                    first_dense=3,
                    group_size=512,
                    capacity_factor=1.25,
                    balance=BalanceConfig(loss_weight=1e-4, scope="sequence", bias_update="sign"),
                ),
            ),
            "data": {
                "tokenizer": "deepseek/tokenizer.json",
                "batch_size": 1024,
                "eval_batch_size": 1024,
            },
            "optim.learning_rate": 2.2e-4,
            "mesh.expert": 64,
            "run": {"steps": 500_000, "eval_batches": 10, "checkpoint_every": 500},
        },
    )
