"""Arcee Trinity: DeepSeek's choice, a gate on what heads find, norms on both sides.

Letters: X: all heads side by side.
"""

from moejax.hf.families.family import (
    ALL_BIASES,
    BY_BIAS,
    DENSE,
    EXPERTS,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    QUERY_NORMS,
    SHARED,
    SIZES,
    SWIGLU,
    Family,
)
from moejax.hf.fields import attention, layers
from moejax.hf.fields.translation import Fields, Translation
from moejax.hf.tensors import Rule


def _see_all(hf: Fields) -> list[bool]:
    """Every n-th layer."""
    every = hf["global_attn_every_n_layers"]
    return [(i + 1) % every == 0 for i in range(hf["num_hidden_layers"])]


# Embeddings times the root of their width (muP).
scaled_embedding = Translation(
    lambda hf: {"embedding_scale": hf["hidden_size"] ** 0.5 if hf["mup_enabled"] else 1.0},
    lambda model: {"mup_enabled": model.embedding_scale != 1},
)

FAMILIES: dict[str, Family] = {
    "afmoe": Family(
        architecture="AfmoeForCausalLM",
        fields=SIZES
        | {
            "intermediate_size": "dense_hidden_size",
            "moe_intermediate_size": "moe.hidden_size",
            "num_dense_layers": "moe.first_dense",
            "num_experts": "moe.num_experts",
            "num_experts_per_tok": "moe.top_k",
            "num_shared_experts": "moe.shared_experts",
            "route_scale": "moe.weight_scale",
        },
        defaults=GIVEN
        | {"rms_norm_eps": 1e-5, "max_position_embeddings": 16_384, "head_dim": 128}
        | {"num_dense_layers": 1, "num_experts_per_tok": 6, "num_shared_experts": 2}
        | {"route_scale": 1.0, "global_attn_every_n_layers": 4, "sliding_window": 1024}
        | {"mup_enabled": False, "attention_bias": False},
        fixed=SWIGLU | {"score_func": "sigmoid", "route_norm": True, "n_group": 1, "topk_group": 1},
        ours=BY_BIAS
        | {"moe.router": "deepseek_v3", "attention.output_gate": True, "norm_place": "sandwich"},
        translations=(
            *GROUPED,
            attention.attention_bias,
            layers.attention_kinds(_see_all, positions=False),
            scaled_embedding,
        ),
        tensors=(
            Rule("input_layernorm.weight", "attention_norm/scale_D"),
            Rule("post_attention_layernorm.weight", "attention_output_norm/scale_D"),
            Rule("pre_mlp_layernorm.weight", "feed_forward_norm/scale_D"),
            Rule("post_mlp_layernorm.weight", "feed_forward_output_norm/scale_D"),
            *GROUPED_QUERIES,
            *ALL_BIASES,
            *QUERY_NORMS,
            Rule("self_attn.gate_proj.weight", "attention/w_output_gate_DX", transpose=True),
            *DENSE,
            Rule("mlp.router.gate.weight", "moe/w_router_DE", transpose=True),
            *EXPERTS,
            *SHARED,
            Rule("mlp.expert_bias", "bias_LE"),
        ),
    ),
}
