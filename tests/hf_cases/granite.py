"""Granite."""

from hf_cases.shared import SIZES

GRANITE = {"model_type": "granitemoe", **SIZES, "intermediate_size": 16, "num_local_experts": 6}
GRANITE |= {"num_experts_per_tok": 3, "attention_multiplier": 0.3}
SHARED = GRANITE | {"model_type": "granitemoeshared", "shared_intermediate_size": 24}
CASES = {
    "granitemoe": GRANITE,
    "granitemoe_scales": GRANITE
    | {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}
    | {"tie_word_embeddings": True, "attention_bias": True},
    "granitemoeshared": SHARED,
    "granitemoeshared_scales": SHARED
    | {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}
    | {"tie_word_embeddings": True, "shared_intermediate_size": 32},
}
LEAST = dict.fromkeys(("granitemoe", "granitemoeshared"), {"num_local_experts": 64})
RENAMED = {
    "router.layer": "router",
    "block_sparse_moe.input_linear.weight": "block_sparse_moe.experts.gate_up_proj",
    "block_sparse_moe.output_linear.weight": "block_sparse_moe.experts.down_proj",
}
