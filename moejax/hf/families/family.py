"""What a family of models is, as data, and the pieces that several families share.

Letters: X: all heads side by side, or an embedding and a hidden state.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moejax.hf.fields import attention, positions
from moejax.hf.fields.translation import Translation
from moejax.hf.tensors import Rule


@dataclass(frozen=True)
class LeftOut:
    """Tensors of a family that are no part of our model."""

    pattern: str
    """A regular expression of their names."""
    what: str
    """What they are, in words."""
    needed: bool = True
    """Whether transformers' class misses them: then no export is of this family."""


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
    full_attention: str = "full_attention"
    """What ``layer_types`` calls a layer that sees all positions."""
    alternatives: tuple[Rule, ...] = ()
    """Other tensors that some files have for the same arrays; they are read, and not written."""
    left_out: tuple[LeftOut, ...] = ()
    """Tensors that are not read; a message says so."""
    may_lack_bias: bool = False
    """Whether released files may have no selection bias, though the model adds one: then it is 0.
    """
    synonyms: tuple[tuple[str, ...], ...] = (("num_experts", "num_local_experts"),)
    """Names that are in use for one field."""

    def choose_rules(self, names: Iterable[str] = ()) -> tuple[Rule, ...]:
        """``tensors``, or what the files with tensors of these names have in their place."""
        ends = tuple(f".{rule.theirs}" for rule in self.alternatives)
        if not ends or not any(name.endswith(ends) for name in names):
            return self.tensors
        claimed = {ours for rule in self.alternatives for ours in rule.names}
        kept = (rule for rule in self.tensors if not claimed & set(rule.names))
        return (*kept, *self.alternatives)


WHOLE = (
    Rule("model.embed_tokens.weight", "embedding_VD"),
    Rule("model.norm.weight", "final_norm/scale_D"),
    Rule("lm_head.weight", "w_head_DV", transpose=True),
)
"""Tensors that are in no layer; the same in every family."""

NEXT_TOKENS = (
    Rule("enorm.weight", "embedding_norm/scale_D"),
    Rule("hnorm.weight", "hidden_norm/scale_D"),
    Rule("eh_proj.weight", "w_merge_XD", transpose=True),
    Rule("shared_head.norm.weight", "final_norm/scale_D"),
)
"""What a layer that predicts a further token has beside an ordinary layer's tensors, in each family
that translates ``next_tokens``."""
NEXT_TOKEN_COPIES = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "shared_head.head.weight": "lm_head.weight",
}
"""What such a layer repeats of ``WHOLE``."""
NORMS = (
    Rule("input_layernorm.weight", "attention_norm/scale_D"),
    Rule("post_attention_layernorm.weight", "feed_forward_norm/scale_D"),
)
QUERIES = (Rule("self_attn.q_proj.weight", "attention/w_query_DX", transpose=True),)
KEYS = (Rule("self_attn.k_proj.weight", "attention/w_key_DX", transpose=True),)
VALUES_AND_OUT = (
    Rule("self_attn.v_proj.weight", "attention/w_value_DX", transpose=True),
    Rule("self_attn.o_proj.weight", "attention/w_out_XD", transpose=True),
)
GROUPED_QUERIES = (*QUERIES, *KEYS, *VALUES_AND_OUT)
BIASES = (
    Rule("self_attn.q_proj.bias", "attention/b_query_X"),
    Rule("self_attn.k_proj.bias", "attention/b_key_X"),
    Rule("self_attn.v_proj.bias", "attention/b_value_X"),
)
ALL_BIASES = (*BIASES, Rule("self_attn.o_proj.bias", "attention/b_out_D"))
QUERY_NORMS = (
    Rule("self_attn.q_norm.weight", "attention/query_norm/scale_D"),
    Rule("self_attn.k_norm.weight", "attention/key_norm/scale_D"),
)
SINKS = (Rule("self_attn.sinks", "attention/sink_H"),)
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
SPARSE_BLOCK = (
    Rule("block_sparse_moe.gate.weight", "moe/w_router_DE", transpose=True),
    Rule("block_sparse_moe.experts.{e}.w1.weight", "moe/w_gate_EDF", transpose=True),
    Rule("block_sparse_moe.experts.{e}.w3.weight", "moe/w_up_EDF", transpose=True),
    Rule("block_sparse_moe.experts.{e}.w2.weight", "moe/w_down_EFD", transpose=True),
)
"""Mixtral's router and experts."""
EXPERTS = network_rules("mlp.experts.{e}", "moe", ("EDF", "EFD"))
SHARED = network_rules("mlp.shared_experts", "moe/shared")
SELECTION_BIAS = (Rule("mlp.gate.e_score_correction_bias", "bias_LE"),)

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
    "quantization": None,
}
GROUPED = (positions.rope, attention.heads)
ALWAYS: dict[str, Any] = {
    "logit_scale": 1.0,
    "moe.capacity_factor": None,
    "moe.eval_capacity_factor": None,
    "moe.group_size": 1,
    "moe.balance.convention": "hf",
}
NO_LOSS = ALWAYS | {"moe.balance.loss_weight": 0.0}
BY_BIAS = NO_LOSS | {"moe.balance.convention": "switch", "moe.balance.scope": "sequence"}
"""Balanced by the selection bias that DeepSeek-V3 has. A loss beside it, for which ``config.json``
has no field, is that of each sequence (2024, Eq. 17-20)."""
NO_EXPERTS = ALWAYS | {"moe.every": 0, "qk_norm": False}
NO_WINDOW = {"use_sliding_window": False}
LOSS = {"router_aux_loss_coef": "moe.balance.loss_weight"}
CHOICES = {"num_experts_per_tok": "moe.top_k", "norm_topk_prob": "moe.renormalise"}
ALL_ROUTED = {
    **SIZES,
    **LOSS,
    "intermediate_size": "moe.hidden_size",
    "num_local_experts": "moe.num_experts",
    "num_experts_per_tok": "moe.top_k",
}
SPARSE = {
    "moe_intermediate_size": "moe.hidden_size",
    "n_routed_experts": "moe.num_experts",
    "num_experts_per_tok": "moe.top_k",
    "n_shared_experts": "moe.shared_experts",
    "routed_scaling_factor": "moe.weight_scale",
}
"""Fields of the kin of DeepSeek."""
DENSE_FIRST = {
    "intermediate_size": "dense_hidden_size",
    "first_k_dense_replace": "moe.first_dense",
}
GROUPS = {
    "norm_topk_prob": "moe.renormalise",
    "n_group": "moe.expert_groups",
    "topk_group": "moe.kept_expert_groups",
}
ONE_GROUP = {"n_group": 1, "topk_group": 1}
LATENT_SIZES = {
    "kv_lora_rank": "attention.kv_rank",
    "q_lora_rank": "attention.query_rank",
    "qk_rope_head_dim": "attention.rope_head_size",
    "v_head_dim": "attention.value_head_size",
    "qk_nope_head_dim": "head_size",
}
DEEPSEEK_FIXED = SWIGLU | {"attention_bias": False, "mlp_bias": False, "moe_layer_freq": 1}
SIGMOID = {"rope_interleave": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
DEEPSEEK_OURS = BY_BIAS | {"qk_norm": False}
LATENT_POSITIONS = (positions.latent_rope, attention.one_head_each, attention.rotary_head)
DEEPSEEK_TENSORS = (*NORMS, *LATENT, *DENSE, *ROUTER, *EXPERTS, *SHARED)
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
