"""Qwen3-Next and Qwen3.5-MoE."""

from hf_cases.shared import EXPERTS, SIZES

NEXT = {"model_type": "qwen3_next", **SIZES, **EXPERTS, "intermediate_size": 40, "head_dim": 16}
NEXT |= {"shared_expert_intermediate_size": 16, "full_attention_interval": 2}
NEXT |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
NEXT |= {"linear_key_head_dim": 6, "linear_value_head_dim": 8}
TEXT = {field: x for field, x in NEXT.items() if field != "intermediate_size"}
TEXT |= {"model_type": "qwen3_5_moe_text"}
CASES = {
    "qwen3_next": NEXT,
    "qwen3_next_dense_between": NEXT
    | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "full_attention_interval": 4}
    | {"linear_conv_kernel_dim": 2, "norm_topk_prob": False, "tie_word_embeddings": True},
    "qwen3_next_first_full": NEXT
    | {"num_hidden_layers": 3, "mlp_only_layers": [0], "partial_rotary_factor": 0.5}
    | {"layer_types": ["full_attention", "linear_attention", "linear_attention"]}
    | {"linear_num_key_heads": 3, "linear_num_value_heads": 3},
    "qwen3_5_moe": TEXT,
    "qwen3_5_moe_longer_pattern": TEXT
    | {"num_hidden_layers": 4, "full_attention_interval": 3, "linear_num_value_heads": 2}
    | {
        "rope_parameters": {
            "rope_theta": 1e5,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 2],
        }
    }
    | {"linear_conv_kernel_dim": 3},
    "qwen3_5_moe_tied": TEXT | {"tie_word_embeddings": True, "shared_expert_intermediate_size": 24},
}
LEAST = {
    "qwen3_5_moe_text": {},
    "qwen3_next": {
        "num_experts": 64,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 32,
    },
}
ZERO_CENTRED = {"qwen3_next", "qwen3_5_moe_text"}
