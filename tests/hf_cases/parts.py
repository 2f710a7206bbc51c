"""Families that rotate a part of a head, or norm elsewhere."""

from hf_cases.shared import DEEPSEEK, EXPERTS, SIZES, YARN

GLM = {"model_type": "glm4_moe", **SIZES, "intermediate_size": 40, "moe_intermediate_size": 16}
GLM |= {"n_routed_experts": 8, "num_experts_per_tok": 3, "head_dim": 12, "num_hidden_layers": 3}
GLM |= {"use_qk_norm": True, "partial_rotary_factor": 0.5, "num_nextn_predict_layers": 0}
MINIMAX = {"model_type": "minimax_m2", **SIZES, "intermediate_size": 16, "num_local_experts": 6}
MINIMAX |= {"num_experts_per_tok": 3, "head_dim": 12, "rotary_dim": 8}
FLEX = {"model_type": "flex_olmo", **SIZES, **EXPERTS, "intermediate_size": 16}
FLEX |= {"pad_token_id": 0}
AXK1 = {"model_type": "axk1", **DEEPSEEK, "num_hidden_layers": 3, "routed_scaling_factor": 2.5}
HUNYUAN = {"model_type": "hunyuan_v1_moe", **SIZES, "intermediate_size": 16, "num_experts": 6}
HUNYUAN |= {"moe_topk": 3, "head_dim": 12}

CASES = {
    "glm4_moe": GLM,
    "glm4_moe_groups": GLM
    | {"n_group": 4, "topk_group": 2, "use_qk_norm": False, "attention_bias": True}
    | {"routed_scaling_factor": 2.5, "n_shared_experts": 2, "num_hidden_layers": 2},
    "glm4_moe_yarn_tied": GLM
    | {"rope_scaling": YARN | {"partial_rotary_factor": 0.67}, "tie_word_embeddings": True}
    | {"norm_topk_prob": False, "first_k_dense_replace": 2},
    "minimax_m2": MINIMAX,
    "minimax_m2_tied": MINIMAX
    | {"tie_word_embeddings": True, "partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    "flex_olmo": FLEX,
    "flex_olmo_normalised": FLEX | {"norm_topk_prob": True, "attention_bias": True},
    "axk1": AXK1,
    "axk1_yarn": AXK1 | {"rope_scaling": YARN, "n_shared_experts": 1, "first_k_dense_replace": 2},
    "hunyuan_v1_moe": HUNYUAN,
    "hunyuan_v1_moe_lists": HUNYUAN
    | {"moe_topk": [2, 2], "attention_bias": True}
    | {"rope_scaling": {"type": "dynamic", "alpha": 100.0, "factor": 1.0}},
}
LEAST = {
    "glm4_moe": {"n_routed_experts": 64, "moe_intermediate_size": 16},
    "minimax_m2": {"num_local_experts": 64},
    "flex_olmo": {"num_experts": 64},
    "axk1": {"n_routed_experts": 64, "moe_intermediate_size": 16},
    "hunyuan_v1_moe": {},
}
RENAMED = {
    "block_sparse_moe.e_score_correction_bias": "mlp.e_score_correction_bias",
    "post_mlp_layernorm": "mlp.post_mlp_layernorm",
}
