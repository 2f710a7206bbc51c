"""K-EXAONE: DeepSeek's experts; layers with a window have rotary positions, the others none."""

from moejax.config.checks import check, shorten
from moejax.hf.families.family import (
    BY_BIAS,
    DENSE,
    EXPERTS,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    GROUPS,
    NORMS,
    ONE_GROUP,
    QUERY_NORMS,
    ROUTER,
    SHARED,
    SIZES,
    SWIGLU,
    Family,
    LeftOut,
)
from moejax.hf.fields import layers
from moejax.hf.fields.translation import Fields
from moejax.hf.tensors import Rule


def _see_all(hf: Fields) -> list[bool]:
    """Every n-th layer."""
    every = hf["sliding_window_pattern"]
    check(
        type(every) is int and every > 0,
        f"sliding_window_pattern is {shorten(every)}: give layer_types, or a whole number.",
    )
    return [(i + 1) % every == 0 for i in range(hf["num_hidden_layers"])]


FAMILIES: dict[str, Family] = {
    "exaone_moe": Family(
        architecture="ExaoneMoeForCausalLM",
        fields={**SIZES, **GROUPS}
        | {
            "intermediate_size": "dense_hidden_size",
            "moe_intermediate_size": "moe.hidden_size",
            "num_experts": "moe.num_experts",
            "num_experts_per_tok": "moe.top_k",
            "num_shared_experts": "moe.shared_experts",
            "routed_scaling_factor": "moe.weight_scale",
        },
        defaults=GIVEN
        | ONE_GROUP
        | {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "num_key_value_heads": 32}
        | {"sliding_window": 4096, "sliding_window_pattern": 4, "first_k_dense_replace": 1}
        | {"num_experts_per_tok": 8, "num_shared_experts": 1, "norm_topk_prob": True}
        | {"routed_scaling_factor": 2.5},
        fixed=SWIGLU,
        ours=BY_BIAS | {"moe.router": "deepseek_v3"},
        translations=(
            *GROUPED,
            layers.attention_kinds(_see_all, positions=False),
            layers.mlp_layer_types(lambda hf: hf["first_k_dense_replace"]),
        ),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES,
            *QUERY_NORMS,
            *DENSE,
            *ROUTER,
            *EXPERTS,
            *SHARED,
            Rule("mlp.e_score_correction_bias", "bias_LE"),
        ),
        left_out=(LeftOut(r"^mtp\.", "the layer that predicts a second token", needed=False),),
    ),
}
