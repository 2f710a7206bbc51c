"""Mixtral."""

from hf_cases.shared import SIZES

MIXTRAL = {"model_type": "mixtral", **SIZES, "intermediate_size": 24, "num_local_experts": 4}
CASES = {
    "mixtral": MIXTRAL | {"num_experts_per_tok": 2, "rope_theta": 1e6},
    "mixtral_window_tied": MIXTRAL
    | {"num_experts_per_tok": 3, "sliding_window": 4, "tie_word_embeddings": True, "head_dim": 12},
    "mixtral_k1": MIXTRAL | {"num_experts_per_tok": 1},
}
LEAST = {"mixtral": {"num_local_experts": 64}}
RENAMED = {"block_sparse_moe.gate": "mlp.gate"}
