"""Qwen3-Next and Qwen3.5-MoE: layers with a memory (Gated DeltaNet) between layers with gated
attention, and norms about 1.

Letters: X: all heads side by side; W: positions that a short convolution looks at.
"""

from dataclasses import replace

from moejax.hf.families.family import (
    ALWAYS,
    DENSE,
    EXPERTS,
    KEYS,
    NORMS,
    QUERY_NORMS,
    QWEN,
    QWEN_GIVEN,
    ROUTER,
    SWIGLU,
    VALUES_AND_OUT,
    Family,
    LeftOut,
    network_rules,
)
from moejax.hf.fields import attention, experts, layers, positions
from moejax.hf.tensors import Rule

SHARED_WIDTH = experts.shared_width("shared_expert_intermediate_size")
MIXES = ("delta/mix_query_WX", "delta/mix_key_WX", "delta/mix_value_WX")
QUERY_KEY_VALUE = ("delta/w_query_DX", "delta/w_key_DX", "delta/w_value_DX")
BETA_AND_STEP = ("delta/w_beta_DH", "delta/w_step_DH")
MEMORY = (
    Rule("linear_attn.conv1d.weight", MIXES, channels=True, columns="delta_parts"),
    Rule("linear_attn.dt_bias", "delta/step_bias_H"),
    Rule("linear_attn.A_log", "delta/log_rate_H"),
    Rule("linear_attn.norm.weight", "delta/head_norm/scale_D"),
    Rule("linear_attn.out_proj.weight", "delta/w_out_XD", transpose=True),
)
GROUPED_INPUTS = (
    Rule(
        "linear_attn.in_proj_qkvz.weight",
        (*QUERY_KEY_VALUE, "delta/w_gate_DX"),
        transpose=True,
        columns="delta_groups",
    ),
    Rule("linear_attn.in_proj_ba.weight", BETA_AND_STEP, transpose=True, columns="delta_numbers"),
)
SEPARATE_INPUTS = (
    Rule("linear_attn.in_proj_qkv.weight", QUERY_KEY_VALUE, transpose=True, columns="delta_parts"),
    Rule("linear_attn.in_proj_z.weight", "delta/w_gate_DX", transpose=True),
    Rule("linear_attn.in_proj_b.weight", "delta/w_beta_DH", transpose=True),
    Rule("linear_attn.in_proj_a.weight", "delta/w_step_DH", transpose=True),
)
BLOCK = (
    *NORMS,
    Rule(
        "self_attn.q_proj.weight",
        ("attention/w_query_DX", "attention/w_output_gate_DX"),
        transpose=True,
        columns="query_and_gate",
    ),
    *KEYS,
    *VALUES_AND_OUT,
    *QUERY_NORMS,
    *MEMORY,
    *DENSE,
    *ROUTER,
    *EXPERTS,
    *network_rules("mlp.shared_expert", "moe/shared"),
    Rule("mlp.shared_expert_gate.weight", "moe/w_shared_gate_D1", transpose=True),
)

NEXT = Family(
    architecture="Qwen3NextForCausalLM",
    fields=QWEN,
    defaults=QWEN_GIVEN
    | {"num_key_value_heads": 2, "num_experts_per_tok": 10, "head_dim": 256}
    | {"norm_topk_prob": True, "partial_rotary_factor": 0.25}
    | {"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_conv_kernel_dim": 4}
    | {"linear_key_head_dim": 128, "linear_value_head_dim": 128},
    fixed=SWIGLU | {"attention_bias": False, "attn_output_gate": True},
    ours=ALWAYS
    | {"moe.router": "qwen2_moe", "moe.shared_gate": True}
    | {"attention.output_gate": True, "zero_centred_norm": True},
    translations=(positions.part_rope, attention.heads, layers.memories, layers.routed_layers)
    + (SHARED_WIDTH,),
    tensors=BLOCK + GROUPED_INPUTS,
    left_out=(LeftOut(r"^mtp\.", "what predicts a second token (mtp)", needed=False),),
)

NOT_ROUTED = ("intermediate_size", "norm_topk_prob")
TEXT = replace(
    NEXT,
    architecture="Qwen3_5MoeForCausalLM",
    fields={field: path for field, path in NEXT.fields.items() if field not in NOT_ROUTED},
    defaults={
        field: value
        for field, value in NEXT.defaults.items()
        if field not in (*NOT_ROUTED, "decoder_sparse_step", "mlp_only_layers")
    }
    | {"num_experts_per_tok": 8, "num_experts": 256, "moe_intermediate_size": 512}
    | {"shared_expert_intermediate_size": 512},
    ours=NEXT.ours | {"moe.renormalise": True},
    translations=(positions.part_rope, attention.heads, layers.memories, SHARED_WIDTH),
    tensors=BLOCK + SEPARATE_INPUTS,
    alternatives=(
        Rule(
            "mlp.experts.gate_up_proj",
            ("moe/w_gate_EDF", "moe/w_up_EDF"),
            transpose=True,
            columns="halves",
        ),
        Rule("mlp.experts.down_proj", "moe/w_down_EFD", transpose=True),
    ),
    left_out=(*NEXT.left_out, LeftOut(r"^model\.visual\.", "what sees images", needed=False)),
)
"""The text model of Qwen3.5-MoE; all layers are routed."""

FAMILIES: dict[str, Family] = {"qwen3_next": NEXT, "qwen3_5_moe_text": TEXT}
