"""Hunyuan."""

from hf_cases.shared import EXPERTS, SIZES, YARN

HY = {"model_type": "hy_v3", **SIZES, **EXPERTS, "intermediate_size": 40, "head_dim": 12}
CASES = {
    "hy_v3": HY,
    "hy_v3_biases_tied": HY
    | {"attention_bias": True, "tie_word_embeddings": True, "num_shared_experts": 2}
    | {"mlp_layer_types": ["sparse", "sparse"], "num_experts_per_tok": 1},
    "hy_v3_yarn": HY | {"rope_scaling": YARN, "router_scaling_factor": 1.0, "head_dim": 8},
}
LEAST = {"hy_v3": {"num_experts": 64, "moe_intermediate_size": 16}}
RENAMED = {"mlp.router.gate": "mlp.gate", "mlp.shared_mlp": "mlp.shared_experts"}
