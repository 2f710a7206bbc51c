"""Flint: Qwen3-MoE with sinks and a shared expert; rotary positions in layers with a window."""

from moejax.hf.families.family import (
    ALL_BIASES,
    DENSE,
    EXPERTS,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    LOSS,
    NO_LOSS,
    NORMS,
    QUERY_NORMS,
    QWEN,
    ROUTER,
    SWIGLU,
    Family,
    network_rules,
)
from moejax.hf.fields import attention, experts, layers
from moejax.hf.fields.translation import Fields
from moejax.hf.tensors import Rule


def _see_all(hf: Fields) -> list[bool]:
    """The first two layers, every fourth, and the last."""
    last = hf["num_hidden_layers"] - 1
    return [i < 2 or i % 4 == 1 or i == last for i in range(last + 1)]


FAMILIES: dict[str, Family] = {
    "flint": Family(
        architecture="FlintForCausalLM",
        fields={field: path for field, path in QWEN.items() if field not in LOSS},
        defaults=GIVEN
        | {"max_position_embeddings": 262_144, "head_dim": 128, "num_key_value_heads": 4}
        | {"attention_bias": False, "sliding_window": 513, "shared_expert_intermediate_size": 1024}
        | {"num_experts_per_tok": 6, "norm_topk_prob": True}
        | {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1]},
        fixed=SWIGLU,
        ours=NO_LOSS | {"moe.router": "flint", "attention.sinks": True},
        translations=(
            *GROUPED,
            attention.attention_bias,
            layers.attention_kinds(_see_all, positions=False),
            layers.routed_layers,
            experts.shared_width("shared_expert_intermediate_size"),
        ),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES,
            *ALL_BIASES,
            *QUERY_NORMS,
            Rule("self_attn.softmax_offset", "attention/sink_H"),
            *DENSE,
            *ROUTER,
            *EXPERTS,
            *network_rules("mlp.shared_expert", "moe/shared"),
        ),
    ),
}
