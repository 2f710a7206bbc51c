"""OLMoE."""

from hf_cases.shared import EXPERTS, SIZES

OLMOE = {"model_type": "olmoe", **SIZES, **EXPERTS, "intermediate_size": 16}
CASES = {
    "olmoe": OLMOE,
    "olmoe_k1": OLMOE | {"num_experts_per_tok": 1, "num_key_value_heads": 4},
}
LEAST = {"olmoe": {"num_experts": 64}}
