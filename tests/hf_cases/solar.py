"""Solar-Open."""

from hf_cases.shared import SIZES, YARN

SPARSE = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16}
SOLAR = {"model_type": "solar_open", **SIZES, **SPARSE, "head_dim": 12}
CASES = {
    "solar_open": SOLAR,
    "solar_open_biases_tied": SOLAR
    | {"attention_bias": True, "tie_word_embeddings": True, "n_shared_experts": 2}
    | {"n_group": 4, "topk_group": 2},
    "solar_open_yarn": SOLAR
    | {"rope_scaling": YARN, "num_experts_per_tok": 1, "norm_topk_prob": False}
    | {"routed_scaling_factor": 2.5},
}
LEAST = {"solar_open": {"n_routed_experts": 64, "moe_intermediate_size": 16}}
