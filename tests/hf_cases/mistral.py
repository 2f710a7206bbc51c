"""Mistral Small 4."""

from hf_cases.shared import DEEPSEEK, MSCALES, YARN

MISTRAL = {"model_type": "mistral4", **DEEPSEEK, "n_group": 1, "topk_group": 1}
LONG = YARN | MSCALES | {"original_max_position_embeddings": 48, "llama_4_scaling_beta": 0.1}
CASES = {
    "mistral4": MISTRAL | {"rope_parameters": LONG | {"rope_theta": 10000.0}},
    "mistral4_tied": MISTRAL
    | {"rope_parameters": LONG | {"factor": 2.0, "rope_theta": 500.0}, "q_lora_rank": None}
    | {"tie_word_embeddings": True, "norm_topk_prob": False, "routed_scaling_factor": 2.5}
    | {"first_k_dense_replace": 0, "n_shared_experts": 1, "num_experts_per_tok": 1},
}
LEAST = {"mistral4": {"n_routed_experts": 64, "moe_intermediate_size": 16}}
