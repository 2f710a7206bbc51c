"""GLM."""

from hf_cases.shared import DEEPSEEK, MSCALES, YARN

LITE = {field: x for field, x in DEEPSEEK.items() if field != "first_k_dense_replace"}
LITE |= {"model_type": "glm4_moe_lite", "rms_norm_eps": 1e-5, "n_group": 1, "topk_group": 1}
CASES = {
    "glm4_moe_lite": LITE,
    "glm4_moe_lite_groups_tied": LITE
    | {"mlp_layer_types": ["sparse", "sparse"], "n_group": 4, "topk_group": 2}
    | {"tie_word_embeddings": True, "norm_topk_prob": False, "num_experts_per_tok": 1},
    "glm4_moe_lite_yarn": LITE
    | {"rope_scaling": YARN | MSCALES, "mlp_layer_types": ["dense", "dense", "sparse"]}
    | {"num_hidden_layers": 3, "q_lora_rank": None, "n_shared_experts": 1},
}
LEAST = {"glm4_moe_lite": {"n_routed_experts": 64, "moe_intermediate_size": 16}}
