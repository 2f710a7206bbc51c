"""Solar-Open: DeepSeek's experts in every layer, Llama's attention."""

from moejax.hf.families.family import (
    BIASES,
    BY_BIAS,
    EXPERTS,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    GROUPS,
    NORMS,
    ONE_GROUP,
    ROUTER,
    SELECTION_BIAS,
    SHARED,
    SIZES,
    SPARSE,
    SWIGLU,
    Family,
)
from moejax.hf.fields import attention

FAMILIES: dict[str, Family] = {
    "solar_open": Family(
        architecture="SolarOpenForCausalLM",
        fields={**SIZES, **SPARSE, **GROUPS},
        defaults=GIVEN
        | ONE_GROUP
        | {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131_072}
        | {"num_key_value_heads": 8, "head_dim": 128, "attention_bias": False}
        | {"num_experts_per_tok": 8, "n_shared_experts": 1, "norm_topk_prob": True}
        | {"routed_scaling_factor": 1.0},
        fixed=SWIGLU,
        ours=BY_BIAS | {"qk_norm": False, "moe.router": "deepseek_v3"},
        translations=(*GROUPED, attention.query_key_value_bias),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES,
            *BIASES,
            *ROUTER,
            *EXPERTS,
            *SHARED,
            *SELECTION_BIAS,
        ),
    ),
}
