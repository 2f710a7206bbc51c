"""Granite: four multipliers; a shared expert of any width."""

from dataclasses import replace

from moejax.hf.families.family import (
    ALL_BIASES,
    ALL_ROUTED,
    ALWAYS,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    LITTLE_LOSS,
    NORMS,
    SWIGLU,
    Family,
)
from moejax.hf.fields import attention, experts
from moejax.hf.fields.translation import Translation
from moejax.hf.tensors import Rule

logits_scaling = Translation(
    lambda hf: {"logit_scale": 1 / hf["logits_scaling"]},
    lambda model: {"logits_scaling": 1 / model.logit_multiplier},
)

GRANITE = Family(
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
    translations=(*GROUPED, attention.attention_bias, logits_scaling),
    tensors=(
        *NORMS,
        *GROUPED_QUERIES,
        *ALL_BIASES,
        Rule("block_sparse_moe.router.layer.weight", "moe/w_router_DE", transpose=True),
        Rule(
            "block_sparse_moe.input_linear.weight",
            ("moe/w_gate_EDF", "moe/w_up_EDF"),
            transpose=True,
            columns="halves",
        ),
        Rule("block_sparse_moe.output_linear.weight", "moe/w_down_EFD", transpose=True),
    ),
)
SHARED_MLP = (
    Rule(
        "shared_mlp.input_linear.weight",
        ("moe/shared/w_gate_DF", "moe/shared/w_up_DF"),
        transpose=True,
        columns="halves",
    ),
    Rule("shared_mlp.output_linear.weight", "moe/shared/w_down_FD", transpose=True),
)
WIDTH = "shared_intermediate_size"

FAMILIES: dict[str, Family] = {
    "granitemoe": GRANITE,
    "granitemoeshared": replace(
        GRANITE,
        architecture="GraniteMoeSharedForCausalLM",
        defaults=GRANITE.defaults | {WIDTH: 0},
        translations=(
            *GRANITE.translations,
            experts.shared_width(WIDTH, each="intermediate_size", least=0),
        ),
        tensors=GRANITE.tensors + SHARED_MLP,
    ),
}
