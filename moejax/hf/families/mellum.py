"""Mellum 2: Qwen3-MoE with windows, whose rotary positions have a base of their own."""

from moejax.hf.families.family import (
    ALL_BIASES,
    ALWAYS,
    DENSE,
    EXPERTS,
    GIVEN,
    GROUPED_QUERIES,
    LITTLE_LOSS,
    NORMS,
    QUERY_NORMS,
    QWEN,
    ROUTER,
    SWIGLU,
    Family,
    LeftOut,
)
from moejax.hf.fields import attention, layers, positions

POSITIONS = {
    "full_attention": {"rope_type": "default", "rope_theta": 500_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}

FAMILIES: dict[str, Family] = {
    "mellum": Family(
        architecture="MellumForCausalLM",
        fields=QWEN,
        defaults={field: x for field, x in GIVEN.items() if field != "rope_theta"}
        | LITTLE_LOSS
        | {"rope_parameters": POSITIONS, "max_position_embeddings": 131_072, "head_dim": 128}
        | {"num_key_value_heads": 4, "attention_bias": False, "sliding_window": 1024}
        | {"num_experts_per_tok": 8, "norm_topk_prob": True},
        fixed=SWIGLU | {"rope_scaling": None},
        ours=ALWAYS | {"moe.router": "qwen3_moe"},
        translations=(
            positions.rope_by_kind,
            attention.heads,
            attention.attention_bias,
            layers.attention_kinds(lambda hf: [True] * hf["num_hidden_layers"], positions=True),
            layers.mlp_layer_types(lambda hf: 0),
        ),
        tensors=(*NORMS, *GROUPED_QUERIES, *ALL_BIASES, *QUERY_NORMS, *DENSE, *ROUTER, *EXPERTS),
        left_out=(LeftOut(r"^mtp\.", "the layer that predicts a second token", needed=False),),
    ),
}
