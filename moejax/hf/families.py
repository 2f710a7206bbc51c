"""The table of model families that Hugging Face's checkpoints come in. A family is data: the fields
of its ``config.json``, what is always so, and the names and layouts of its tensors.

Letters: X: all heads side by side.
"""

from dataclasses import dataclass
from typing import Any

from moejax.hf import fields
from moejax.hf.fields import Translation
from moejax.hf.tensors import Rule


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family of models is written, and what of ours it is."""

    architecture: str
    """The class that Hugging Face's code gives it."""
    fields: dict[str, str]
    """Where a field of ``config.json`` goes in ``ModelConfig``, by dotted path, as it is."""
    defaults: dict[str, Any]
    """What a field is that ``config.json`` does not have, as in the family's configuration class of
    transformers. Sizes that every file of a family has no default: a file without is refused."""
    fixed: dict[str, Any]
    """Fields that must have this value, if they are there; it is their default, too."""
    ours: dict[str, Any]
    """Settings of ``ModelConfig`` that all models of the family have."""
    translations: tuple[Translation, ...]
    """Fields that are not taken over as they are."""
    tensors: tuple[Rule, ...]
    """Of one layer; only those that a model has."""


WHOLE = (
    Rule("model.embed_tokens.weight", "embedding_VD"),
    Rule("model.norm.weight", "final_norm/scale_D"),
    Rule("lm_head.weight", "w_head_DV", transpose=True),
)
"""Tensors that are in no layer; the same in every family."""

NORMS = (
    Rule("input_layernorm.weight", "attention_norm/scale_D"),
    Rule("post_attention_layernorm.weight", "feed_forward_norm/scale_D"),
)
GROUPED_QUERIES = (
    Rule("self_attn.q_proj.weight", "attention/w_query_DX", transpose=True),
    Rule("self_attn.k_proj.weight", "attention/w_key_DX", transpose=True),
    Rule("self_attn.v_proj.weight", "attention/w_value_DX", transpose=True),
    Rule("self_attn.o_proj.weight", "attention/w_out_XD", transpose=True),
    Rule("self_attn.q_proj.bias", "attention/b_query_X"),
    Rule("self_attn.k_proj.bias", "attention/b_key_X"),
    Rule("self_attn.v_proj.bias", "attention/b_value_X"),
    Rule("self_attn.o_proj.bias", "attention/b_out_D"),
    Rule("self_attn.q_norm.weight", "attention/query_norm/scale_D"),
    Rule("self_attn.k_norm.weight", "attention/key_norm/scale_D"),
    Rule("self_attn.sinks", "attention/sink_H"),
)
LATENT = (
    Rule("self_attn.q_proj.weight", "attention/w_query_DX", transpose=True, columns="queries"),
    Rule("self_attn.q_a_proj.weight", "attention/w_query_down_DR", transpose=True),
    Rule("self_attn.q_a_layernorm.weight", "attention/query_norm/scale_D"),
    Rule("self_attn.q_b_proj.weight", "attention/w_query_up_RX", transpose=True, columns="queries"),
    Rule(
        "self_attn.kv_a_proj_with_mqa.weight",
        "attention/w_latent_DX",
        transpose=True,
        columns="latent_and_key",
    ),
    Rule("self_attn.kv_a_layernorm.weight", "attention/latent_norm/scale_D"),
    Rule("self_attn.kv_b_proj.weight", "attention/w_latent_up_RX", transpose=True),
    Rule("self_attn.o_proj.weight", "attention/w_out_XD", transpose=True),
)


def network_rules(theirs: str, ours: str, dims: tuple[str, str] = ("DF", "FD")) -> tuple[Rule, ...]:
    """A gated feed-forward network under Llama's names, or a bank of them."""
    inner, outer = dims
    return (
        Rule(f"{theirs}.gate_proj.weight", f"{ours}/w_gate_{inner}", transpose=True),
        Rule(f"{theirs}.up_proj.weight", f"{ours}/w_up_{inner}", transpose=True),
        Rule(f"{theirs}.down_proj.weight", f"{ours}/w_down_{outer}", transpose=True),
    )


DENSE = network_rules("mlp", "feed_forward")
ROUTER = (Rule("mlp.gate.weight", "moe/w_router_DE", transpose=True),)
EXPERTS = network_rules("mlp.experts.{e}", "moe", ("EDF", "EFD"))

SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "norm_epsilon",
    "tie_word_embeddings": "tie_embeddings",
}
GIVEN = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
"""Defaults that most families share."""
LITTLE_LOSS = {"router_aux_loss_coef": 0.001}
SWIGLU = {
    "hidden_act": "silu",
    "is_causal": True,
    "quantization_config": None,
    "quantization": None,
}
GROUPED = (fields.rope, fields.heads)
ALWAYS: dict[str, Any] = {
    "logit_scale": 1.0,
    "moe.capacity_factor": None,
    "moe.eval_capacity_factor": None,
    "moe.group_size": 1,
    "moe.balance.convention": "hf",
}
NO_EXPERTS = ALWAYS | {"moe.every": 0, "qk_norm": False}
NO_WINDOW = {"use_sliding_window": False}
LOSS = {"router_aux_loss_coef": "moe.balance.loss_weight"}
CHOICES = {"num_experts_per_tok": "moe.top_k", "norm_topk_prob": "moe.renormalise"}
QWEN = {
    **SIZES,
    **LOSS,
    **CHOICES,
    "intermediate_size": "dense_hidden_size",
    "moe_intermediate_size": "moe.hidden_size",
    "num_experts": "moe.num_experts",
}
QWEN_GIVEN = (
    GIVEN
    | LITTLE_LOSS
    | {"norm_topk_prob": False, "max_position_embeddings": 32_768}
    | {"decoder_sparse_step": 1, "mlp_only_layers": []}
)
ALL_ROUTED = {
    **SIZES,
    **LOSS,
    "intermediate_size": "moe.hidden_size",
    "num_local_experts": "moe.num_experts",
    "num_experts_per_tok": "moe.top_k",
}

DEEPSEEK = {
    **SIZES,
    "intermediate_size": "dense_hidden_size",
    "moe_intermediate_size": "moe.hidden_size",
    "n_routed_experts": "moe.num_experts",
    "num_experts_per_tok": "moe.top_k",
    "n_shared_experts": "moe.shared_experts",
    "first_k_dense_replace": "moe.first_dense",
    "routed_scaling_factor": "moe.weight_scale",
    "kv_lora_rank": "attention.kv_rank",
    "q_lora_rank": "attention.query_rank",
    "qk_rope_head_dim": "attention.rope_head_size",
    "v_head_dim": "attention.value_head_size",
    "qk_nope_head_dim": "head_size",
}
DEEPSEEK_GIVEN = GIVEN | {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
DEEPSEEK_FIXED = SWIGLU | {"attention_bias": False, "mlp_bias": False, "moe_layer_freq": 1}
DEEPSEEK_OURS = ALWAYS | {"qk_norm": False, "moe.balance.loss_weight": 0.0}
DEEPSEEK_TENSORS = (
    *NORMS,
    *LATENT,
    *DENSE,
    *ROUTER,
    *EXPERTS,
    *network_rules("mlp.shared_experts", "moe/shared"),
    Rule("mlp.gate.e_score_correction_bias", "bias_LE"),
)

GPT_OSS_POSITIONS = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}

FAMILIES: dict[str, Family] = {
    "mixtral": Family(
        architecture="MixtralForCausalLM",
        fields=ALL_ROUTED,
        defaults=GIVEN
        | LITTLE_LOSS
        | {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131_072}
        | {"num_key_value_heads": 8, "num_experts_per_tok": 2, "sliding_window": None},
        fixed=SWIGLU,
        ours=ALWAYS | {"qk_norm": False, "moe.router": "mixtral"},
        translations=(*GROUPED, fields.window),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES[:4],
            Rule("block_sparse_moe.gate.weight", "moe/w_router_DE", transpose=True),
            Rule("block_sparse_moe.experts.{e}.w1.weight", "moe/w_gate_EDF", transpose=True),
            Rule("block_sparse_moe.experts.{e}.w3.weight", "moe/w_up_EDF", transpose=True),
            Rule("block_sparse_moe.experts.{e}.w2.weight", "moe/w_down_EFD", transpose=True),
        ),
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        fields=QWEN,
        defaults=QWEN_GIVEN
        | {"num_key_value_heads": 4, "num_experts_per_tok": 8, "attention_bias": False},
        fixed=SWIGLU | NO_WINDOW,
        ours=ALWAYS | {"moe.router": "qwen3_moe"},
        translations=(*GROUPED, fields.attention_bias, fields.routed_layers),
        tensors=(*NORMS, *GROUPED_QUERIES[:10], *DENSE, *ROUTER, *EXPERTS),
    ),
    "qwen2_moe": Family(
        architecture="Qwen2MoeForCausalLM",
        fields=QWEN,
        defaults=QWEN_GIVEN
        | {"num_key_value_heads": 16, "num_experts_per_tok": 4, "qkv_bias": True},
        fixed=SWIGLU | NO_WINDOW,
        ours=ALWAYS | {"qk_norm": False, "moe.router": "qwen2_moe", "moe.shared_gate": True},
        translations=(*GROUPED, fields.qkv_bias, fields.routed_layers, fields.shared_expert),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES[:7],
            *DENSE,
            *ROUTER,
            *EXPERTS,
            *network_rules("mlp.shared_expert", "moe/shared"),
            Rule("mlp.shared_expert_gate.weight", "moe/w_shared_gate_D1", transpose=True),
        ),
    ),
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
        translations=(*GROUPED, fields.attention_bias),
        tensors=(*NORMS, *GROUPED_QUERIES[:10], *ROUTER, *EXPERTS),
    ),
    "deepseek_v3": Family(
        architecture="DeepseekV3ForCausalLM",
        fields=DEEPSEEK
        | {
            "norm_topk_prob": "moe.renormalise",
            "n_group": "moe.expert_groups",
            "topk_group": "moe.kept_expert_groups",
        },
        defaults=DEEPSEEK_GIVEN
        | {"norm_topk_prob": True, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4}
        | {"n_shared_experts": 1, "first_k_dense_replace": 3, "routed_scaling_factor": 2.5}
        | {"max_position_embeddings": 4096, "num_nextn_predict_layers": 1},
        fixed=DEEPSEEK_FIXED
        | {"rope_interleave": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
        ours=DEEPSEEK_OURS | {"moe.router": "deepseek_v3"},
        translations=(fields.latent_rope, fields.one_head_each, fields.rotary_head)
        + (fields.no_next_tokens,),
        tensors=DEEPSEEK_TENSORS,
    ),
    "deepseek_v2": Family(
        architecture="DeepseekV2ForCausalLM",
        fields=DEEPSEEK,
        defaults=DEEPSEEK_GIVEN
        | {"n_shared_experts": 2, "first_k_dense_replace": 0, "routed_scaling_factor": 1.0}
        | {"topk_method": "greedy", "max_position_embeddings": 2048},
        fixed=DEEPSEEK_FIXED | {"norm_topk_prob": False, "scoring_func": "softmax"},
        ours=DEEPSEEK_OURS | {"moe.router": "deepseek_v2"},
        translations=(fields.latent_rope, fields.one_head_each, fields.group_method),
        tensors=DEEPSEEK_TENSORS[:-1],
    ),
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
        translations=(*GROUPED, fields.layer_types),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES,
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
    "granitemoe": Family(
        architecture="GraniteMoeForCausalLM",
        fields=ALL_ROUTED
        | {
            "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale",
            "attention_multiplier": "attention.scale",
        },
        defaults=GIVEN
        | LITTLE_LOSS
        | {"num_experts_per_tok": 2, "max_position_embeddings": 2048, "attention_bias": False}
        | {"embedding_multiplier": 1.0, "residual_multiplier": 1.0}
        | {"attention_multiplier": 1.0, "logits_scaling": 1.0},
        fixed=SWIGLU,
        ours=ALWAYS | {"qk_norm": False, "moe.router": "granite"},
        translations=(*GROUPED, fields.attention_bias, fields.logits_scaling),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES[:8],
            Rule("block_sparse_moe.router.layer.weight", "moe/w_router_DE", transpose=True),
            Rule(
                "block_sparse_moe.input_linear.weight",
                ("moe/w_gate_EDF", "moe/w_up_EDF"),
                transpose=True,
                columns="halves",
            ),
            Rule("block_sparse_moe.output_linear.weight", "moe/w_down_EFD", transpose=True),
        ),
    ),
    # Dense models, to begin from.
    "llama": Family(
        architecture="LlamaForCausalLM",
        fields=SIZES | {"intermediate_size": "dense_hidden_size"},
        defaults=GIVEN | {"max_position_embeddings": 2048, "attention_bias": False},
        fixed=SWIGLU | {"mlp_bias": False},
        ours=NO_EXPERTS,
        translations=(*GROUPED, fields.attention_bias),
        tensors=(*NORMS, *GROUPED_QUERIES[:8], *DENSE),
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        fields=SIZES | {"intermediate_size": "dense_hidden_size"},
        defaults=GIVEN
        | {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
        fixed=SWIGLU,
        ours=NO_EXPERTS,
        translations=(*GROUPED, fields.window),
        tensors=(*NORMS, *GROUPED_QUERIES[:4], *DENSE),
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        fields=SIZES | {"intermediate_size": "dense_hidden_size"},
        defaults=GIVEN
        | {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False}
        | {"max_position_embeddings": 32_768},
        fixed=SWIGLU | NO_WINDOW,
        ours=NO_EXPERTS | {"qk_norm": True},
        translations=(*GROUPED, fields.attention_bias),
        tensors=(*NORMS, *GROUPED_QUERIES[:10], *DENSE),
    ),
}
