"""gpt-oss."""

from moejax.hf.families.family import (
    ALL_BIASES,
    ALL_ROUTED,
    ALWAYS,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    LITTLE_LOSS,
    NORMS,
    QUERY_NORMS,
    SINKS,
    SWIGLU,
    Family,
)
from moejax.hf.fields import layers
from moejax.hf.tensors import Rule

GPT_OSS_POSITIONS = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}

FAMILIES: dict[str, Family] = {
    "gpt_oss": Family(
        architecture="GptOssForCausalLM",
        fields=ALL_ROUTED,
        defaults=GIVEN
        | LITTLE_LOSS
        | {"rms_norm_eps": 1e-5, "rope_theta": 150_000.0, "max_position_embeddings": 131_072}
        | {"num_key_value_heads": 8, "head_dim": 64, "num_experts_per_tok": 4}
        | {"sliding_window": 128, "rope_parameters": GPT_OSS_POSITIONS},
        fixed=SWIGLU | {"attention_bias": True, "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
        ours=ALWAYS
        | {"qk_norm": False, "moe.router": "gpt_oss", "activation": "clamped_swiglu"}
        | {"moe.expert_bias": True, "attention.bias": "all", "attention.sinks": True},
        translations=(*GROUPED, layers.layer_types),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES,
            *ALL_BIASES,
            *QUERY_NORMS,
            *SINKS,
            Rule("mlp.router.weight", "moe/w_router_DE", transpose=True),
            Rule("mlp.router.bias", "moe/b_router_E"),
            Rule(
                "mlp.experts.gate_up_proj",
                ("moe/w_gate_EDF", "moe/w_up_EDF"),
                columns="alternating",
            ),
            Rule(
                "mlp.experts.gate_up_proj_bias",
                ("moe/b_gate_EF", "moe/b_up_EF"),
                columns="alternating",
            ),
            Rule("mlp.experts.down_proj", "moe/w_down_EFD"),
            Rule("mlp.experts.down_proj_bias", "moe/b_down_ED"),
        ),
    ),
}
