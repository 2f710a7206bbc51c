"""OLMoE."""

from moejax.hf.families.family import (
    ALWAYS,
    CHOICES,
    EXPERTS,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    LOSS,
    NORMS,
    ROUTER,
    SIZES,
    SWIGLU,
    Family,
)
from moejax.hf.fields import attention

FAMILIES: dict[str, Family] = {
    "olmoe": Family(
        architecture="OlmoeForCausalLM",
        fields={
            **SIZES,
            **LOSS,
            **CHOICES,
            "intermediate_size": "moe.hidden_size",
            "num_experts": "moe.num_experts",
        },
        defaults=GIVEN
        | {"rms_norm_eps": 1e-5, "norm_topk_prob": False, "router_aux_loss_coef": 0.01}
        | {"num_experts_per_tok": 8, "max_position_embeddings": 4096, "attention_bias": False},
        fixed=SWIGLU | {"clip_qkv": None},
        ours=ALWAYS | {"moe.router": "olmoe", "attention.qk_norm_over": "width"},
        translations=(*GROUPED, attention.attention_bias),
        tensors=(*NORMS, *GROUPED_QUERIES[:10], *ROUTER, *EXPERTS),
    ),
}
