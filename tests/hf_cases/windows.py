"""Families whose layers differ in what they see, and in their rotary positions."""

from hf_cases.shared import EXPERTS, SIZES

FULL, SLIDING = "full_attention", "sliding_attention"
WINDOWS = {**SIZES, **EXPERTS, "intermediate_size": 40, "head_dim": 12, "sliding_window": 5}
EXAONE = {"model_type": "exaone_moe", **WINDOWS, "num_hidden_layers": 3}
EXAONE |= {"layer_types": [SLIDING, SLIDING, FULL]}
MELLUM = {"model_type": "mellum", **WINDOWS, "num_hidden_layers": 3}
MELLUM |= {"layer_types": [SLIDING, FULL, SLIDING]}
del MELLUM["rope_theta"]
FLINT = {"model_type": "flint", **WINDOWS, "shared_expert_intermediate_size": 24}
FLINT |= {"num_hidden_layers": 3, "layer_types": [FULL, SLIDING, FULL], "mlp_only_layers": [0]}
AFMOE = {"model_type": "afmoe", **WINDOWS, "num_hidden_layers": 3, "global_attn_every_n_layers": 2}
AFMOE |= {"route_scale": 2.5, "mup_enabled": True}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

CASES = {
    "exaone_moe": EXAONE,
    "exaone_moe_all_full": EXAONE | {"layer_types": [FULL] * 3, "tie_word_embeddings": True},
    "mellum": MELLUM,
    "mellum_stretched": MELLUM
    | {"mlp_layer_types": ["dense", "sparse", "sparse"], "norm_topk_prob": False}
    | {
        "rope_parameters": {
            FULL: YARN | {"rope_theta": 500.0},
            SLIDING: {"rope_type": "default", "rope_theta": 30.0},
        }
    },
    "flint": FLINT,
    "flint_every_second": FLINT
    | {"decoder_sparse_step": 2, "mlp_only_layers": [], "num_hidden_layers": 4}
    | {"layer_types": [SLIDING] * 3 + [FULL], "shared_expert_intermediate_size": 16}
    | {"norm_topk_prob": False, "attention_bias": True},
    "afmoe": AFMOE,
    "afmoe_tied": AFMOE
    | {"tie_word_embeddings": True, "attention_bias": True, "num_dense_layers": 0}
    | {"rope_scaling": YARN, "layer_types": [SLIDING, FULL, FULL]},
}
SPARSE = {"num_experts": 64, "moe_intermediate_size": 16}
LEAST = dict.fromkeys(("exaone_moe", "mellum", "flint", "afmoe"), SPARSE)
RENAMED = {
    "mlp.e_score_correction_bias": "mlp.gate.e_score_correction_bias",
    "self_attn.softmax_offset": "self_attn.sinks",
}
