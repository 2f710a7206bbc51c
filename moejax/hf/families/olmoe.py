"""OLMoE, and FlexOlmo: norms of outputs."""

from moejax.hf.families.family import (
    ALL_BIASES,
    ALWAYS,
    CHOICES,
    EXPERTS,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    LOSS,
    NORMS,
    QUERY_NORMS,
    ROUTER,
    SIZES,
    SWIGLU,
    Family,
)
from moejax.hf.fields import attention
from moejax.hf.fields.translation import Translation
from moejax.hf.tensors import Rule

FIELDS = {
    **SIZES,
    **LOSS,
    **CHOICES,
    "intermediate_size": "moe.hidden_size",
    "num_experts": "moe.num_experts",
}
OURS = ALWAYS | {"moe.router": "olmoe", "attention.qk_norm_over": "width"}

FAMILIES: dict[str, Family] = {
    "olmoe": Family(
        architecture="OlmoeForCausalLM",
        fields=FIELDS,
        defaults=GIVEN
        | {"rms_norm_eps": 1e-5, "norm_topk_prob": False, "router_aux_loss_coef": 0.01}
        | {"num_experts_per_tok": 8, "max_position_embeddings": 4096, "attention_bias": False},
        fixed=SWIGLU | {"clip_qkv": None},
        ours=OURS,
        translations=(*GROUPED, attention.attention_bias),
        tensors=(*NORMS, *GROUPED_QUERIES, *ALL_BIASES, *QUERY_NORMS, *ROUTER, *EXPERTS),
    ),
    "flex_olmo": Family(
        architecture="FlexOlmoForCausalLM",
        fields=FIELDS,
        defaults=GIVEN
        | {"rope_theta": 500_000.0, "norm_topk_prob": False, "router_aux_loss_coef": 0.01}
        | {"num_experts_per_tok": 5, "max_position_embeddings": 4096, "attention_bias": False},
        fixed=SWIGLU,
        ours=OURS | {"norm_place": "post"},
        translations=(
            *GROUPED,
            attention.attention_bias,
            # Else it is one that smaller vocabularies have not.
            Translation(lambda hf: {}, lambda model: {"pad_token_id": None}),
        ),
        tensors=(
            Rule("post_attention_layernorm.weight", "attention_output_norm/scale_D"),
            Rule("post_feedforward_layernorm.weight", "feed_forward_output_norm/scale_D"),
            *GROUPED_QUERIES,
            *ALL_BIASES,
            *QUERY_NORMS,
            *ROUTER,
            *EXPERTS,
        ),
    ),
}
