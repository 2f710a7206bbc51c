"""DeepSeek-V2 and -V3."""

from hf_cases.shared import DEEPSEEK, MSCALES, YARN

V2 = {"model_type": "deepseek_v2", **DEEPSEEK, "topk_method": "group_limited_greedy"}
V3 = {"model_type": "deepseek_v3", **DEEPSEEK, "num_hidden_layers": 3, "norm_topk_prob": True}
CASES = {
    "deepseek_v2": V2 | {"routed_scaling_factor": 2.0},
    "deepseek_v2_lite_yarn": V2
    | {"q_lora_rank": None, "topk_method": "greedy", "rope_scaling": YARN | MSCALES}
    | {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0},
    "deepseek_v3": V3 | {"routed_scaling_factor": 2.5},
    "deepseek_v3_yarn": V3
    | {"rope_scaling": YARN | MSCALES, "first_k_dense_replace": 2, "n_shared_experts": 1}
    | {"num_experts_per_tok": 4, "q_lora_rank": None, "routed_scaling_factor": 1.5},
    "deepseek_v3_as_kimi_k2": V3
    | {"rope_scaling": YARN | {"beta_fast": 1, "mscale": 1.0, "mscale_all_dim": 1.0}}
    | {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827, "n_shared_experts": 1}
    | {"num_hidden_layers": 2},
}
V32 = {"model_type": "deepseek_v32", **DEEPSEEK, "index_topk": 48}
V32 |= {"index_head_dim": 12, "index_n_heads": 2}
DSA = V32 | {"model_type": "glm_moe_dsa", "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-5}
CASES |= {
    "deepseek_v32": V32,
    "deepseek_v32_yarn": V32
    | {"rope_scaling": YARN | MSCALES, "mlp_layer_types": ["sparse", "sparse"]}
    | {"num_experts_per_tok": 1, "n_shared_experts": 1},
    "glm_moe_dsa": DSA,
    "glm_moe_dsa_shared_tied": DSA
    | {"indexer_types": ["full", "shared"], "tie_word_embeddings": True}
    | {"first_k_dense_replace": 0, "norm_topk_prob": False},
}
SPARSE = {"n_routed_experts": 64, "moe_intermediate_size": 16}
LEAST = {"deepseek_v2": SPARSE | {"num_experts_per_tok": 6}, "deepseek_v3": SPARSE}
LEAST |= dict.fromkeys(("kimi_k2", "deepseek_v32", "glm_moe_dsa"), SPARSE)
ALIASES = {"kimi_k2": "deepseek_v3"}
