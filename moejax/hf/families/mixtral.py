"""Mixtral."""

from moejax.hf.families.family import (
    ALL_ROUTED,
    ALWAYS,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    LITTLE_LOSS,
    NORMS,
    SPARSE_BLOCK,
    SWIGLU,
    Family,
)
from moejax.hf.fields import attention

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
            *GROUPED_QUERIES,
            *SPARSE_BLOCK,
        ),
    ),
}
