"""Qwen2-MoE and Qwen3-MoE."""

from moejax.hf.families.family import (
    ALL_BIASES,
    ALWAYS,
    BIASES,
    DENSE,
    EXPERTS,
    GROUPED,
    GROUPED_QUERIES,
    NO_WINDOW,
    NORMS,
    QUERY_NORMS,
    QWEN,
    QWEN_GIVEN,
    ROUTER,
    SWIGLU,
    Family,
    network_rules,
)
from moejax.hf.fields import attention, experts, layers
from moejax.hf.tensors import Rule

FAMILIES: dict[str, Family] = {
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        fields=QWEN,
        defaults=QWEN_GIVEN
        | {"num_key_value_heads": 4, "num_experts_per_tok": 8, "attention_bias": False},
        fixed=SWIGLU | NO_WINDOW,
        ours=ALWAYS | {"moe.router": "qwen3_moe"},
        translations=(*GROUPED, attention.attention_bias, layers.routed_layers),
        tensors=(*NORMS, *GROUPED_QUERIES, *ALL_BIASES, *QUERY_NORMS, *DENSE, *ROUTER, *EXPERTS),
    ),
    "qwen2_moe": Family(
        architecture="Qwen2MoeForCausalLM",
        fields=QWEN,
        defaults=QWEN_GIVEN
        | {"num_key_value_heads": 16, "num_experts_per_tok": 4, "qkv_bias": True},
        fixed=SWIGLU | NO_WINDOW,
        ours=ALWAYS | {"qk_norm": False, "moe.router": "qwen2_moe", "moe.shared_gate": True},
        translations=(
            *GROUPED,
            attention.qkv_bias,
            layers.routed_layers,
            experts.shared_width("shared_expert_intermediate_size"),
        ),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES,
            *BIASES,
            *DENSE,
            *ROUTER,
            *EXPERTS,
            *network_rules("mlp.shared_expert", "moe/shared"),
            Rule("mlp.shared_expert_gate.weight", "moe/w_shared_gate_D1", transpose=True),
        ),
    ),
}
