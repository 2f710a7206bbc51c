"""Qwen2-MoE and Qwen3-MoE."""

from hf_cases.shared import EXPERTS, SIZES

QWEN2 = {"model_type": "qwen2_moe", **SIZES, **EXPERTS, "intermediate_size": 40}
QWEN2 |= {"shared_expert_intermediate_size": 32}
QWEN3 = {"model_type": "qwen3_moe", **SIZES, **EXPERTS, "intermediate_size": 40, "head_dim": 12}
CASES = {
    "qwen2_moe": QWEN2,
    "qwen2_moe_k1_every_second": QWEN2
    | {"num_experts_per_tok": 1, "decoder_sparse_step": 2, "num_hidden_layers": 4},
    "qwen2_moe_normalised": QWEN2 | {"norm_topk_prob": True, "qkv_bias": False},
    "qwen3_moe": QWEN3 | {"norm_topk_prob": True},
    "qwen3_moe_first_dense_tied": QWEN3
    | {"mlp_only_layers": [0], "tie_word_embeddings": True, "attention_bias": True},
}
LEAST = {
    "qwen2_moe": {
        "num_experts": 64,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_moe": {"num_experts": 64, "moe_intermediate_size": 16},
}
