"""Granite."""

from hf_cases.shared import SIZES

GRANITE = {"model_type": "granitemoe", **SIZES, "intermediate_size": 16, "num_local_experts": 6}
GRANITE |= {"num_experts_per_tok": 3, "attention_multiplier": 0.3}
CASES = {
    "granitemoe": GRANITE,
    "granitemoe_scales": GRANITE
    | {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}
    | {"tie_word_embeddings": True, "attention_bias": True},
}
LEAST = {"granitemoe": {"num_local_experts": 64}}
RENAMED = {
    "router.layer": "router",
    "input_linear.weight": "experts.gate_up_proj",
    "output_linear.weight": "experts.down_proj",
}
