"""Hunyuan 3."""

from moejax.config.checks import check, shorten
from moejax.hf.families.family import (
    ALL_BIASES,
    BY_BIAS,
    DENSE,
    EXPERTS,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    NORMS,
    QUERY_NORMS,
    SIZES,
    SWIGLU,
    Family,
    network_rules,
)
from moejax.hf.fields import attention, layers
from moejax.hf.fields.translation import Fields, Translation
from moejax.hf.tensors import Rule


def _check_shared(hf: Fields) -> Fields:
    """With none, transformers makes one of the width of the dense layers."""
    shared = hf["num_shared_experts"]
    check(
        type(shared) is int and shared > 0,
        f"num_shared_experts is {shorten(shared)}: it must be a whole number greater than 0.",
    )
    return {}


FAMILIES: dict[str, Family] = {
    "hy_v3": Family(
        architecture="HYV3ForCausalLM",
        fields=SIZES
        | {
            "intermediate_size": "dense_hidden_size",
            "moe_intermediate_size": "moe.hidden_size",
            "num_experts": "moe.num_experts",
            "num_experts_per_tok": "moe.top_k",
            "num_shared_experts": "moe.shared_experts",
            "router_scaling_factor": "moe.weight_scale",
        },
        defaults=GIVEN
        | {"rms_norm_eps": 1e-5, "rope_theta": 11_158_840.0, "max_position_embeddings": 131_072}
        | {"num_key_value_heads": 8, "head_dim": 128, "attention_bias": False}
        | {"num_experts_per_tok": 8, "num_shared_experts": 1, "router_scaling_factor": 2.826},
        fixed=SWIGLU | {"mlp_bias": False},
        ours=BY_BIAS | {"moe.router": "deepseek_v3"},
        translations=(
            *GROUPED,
            attention.attention_bias,
            layers.mlp_layer_types(lambda hf: 1),
            layers.no_next_tokens,
            Translation(_check_shared, lambda model: {}),
        ),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES,
            *ALL_BIASES,
            *QUERY_NORMS,
            *DENSE,
            Rule("mlp.router.gate.weight", "moe/w_router_DE", transpose=True),
            *EXPERTS,
            *network_rules("mlp.shared_mlp", "moe/shared"),
            Rule("mlp.expert_bias", "bias_LE"),
        ),
    ),
}
