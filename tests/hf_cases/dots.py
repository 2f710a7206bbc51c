"""dots.llm1."""

from hf_cases.shared import SIZES

SPARSE = {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3}
SPARSE |= {"moe_intermediate_size": 16}
DOTS = {"model_type": "dots1", **SIZES, **SPARSE, "intermediate_size": 40}
CASES = {
    "dots1": DOTS | {"first_k_dense_replace": 1, "norm_topk_prob": True},
    "dots1_groups_window": DOTS
    | {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "n_shared_experts": 1}
    | {"sliding_window": 5, "max_window_layers": 0, "attention_bias": True},
    "dots1_k1_tied": DOTS
    | {"num_experts_per_tok": 1, "tie_word_embeddings": True, "num_key_value_heads": 4}
    | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4},
}
LEAST = {"dots1": SPARSE}
