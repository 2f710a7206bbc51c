"""ERNIE 4.5."""

from hf_cases.shared import SIZES

ERNIE = {"model_type": "ernie4_5_moe", **SIZES, "intermediate_size": 40}
ERNIE |= {"moe_intermediate_size": 16, "moe_num_experts": 6, "moe_k": 3}
CASES = {
    "ernie4_5_moe": ERNIE | {"tie_word_embeddings": True},
    "ernie4_5_moe_every_second": ERNIE
    | {"num_hidden_layers": 4, "moe_layer_interval": 2, "moe_layer_start_index": 2, "moe_k": 1},
    "ernie4_5_moe_wide_heads": ERNIE
    | {"head_dim": 12, "moe_layer_start_index": 0, "moe_num_shared_experts": 1},
}
LEAST = {"ernie4_5_moe": {"moe_num_experts": 64, "moe_intermediate_size": 16}}
