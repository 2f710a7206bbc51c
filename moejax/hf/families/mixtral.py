"""Mixtral."""

from moejax.hf.families.family import (
    ALL_ROUTED,
    ALWAYS,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    LITTLE_LOSS,
    NORMS,
    SWIGLU,
    Family,
)
from moejax.hf.fields import attention
from moejax.hf.tensors import Rule

FAMILIES: dict[str, Family] = {
    "mixtral": Family(
        architecture="MixtralForCausalLM",
        fields=ALL_ROUTED,
        defaults=GIVEN
        | LITTLE_LOSS
        | {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131_072}
        | {"num_key_value_heads": 8, "num_experts_per_tok": 2, "sliding_window": None},
        fixed=SWIGLU,
        ours=ALWAYS | {"qk_norm": False, "moe.router": "mixtral"},
        translations=(*GROUPED, attention.window),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES[:4],
            Rule("block_sparse_moe.gate.weight", "moe/w_router_DE", transpose=True),
            Rule("block_sparse_moe.experts.{e}.w1.weight", "moe/w_gate_EDF", transpose=True),
            Rule("block_sparse_moe.experts.{e}.w3.weight", "moe/w_up_EDF", transpose=True),
            Rule("block_sparse_moe.experts.{e}.w2.weight", "moe/w_down_EFD", transpose=True),
        ),
    ),
}
