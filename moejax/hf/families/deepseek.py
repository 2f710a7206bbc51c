"""DeepSeek-V2 and -V3: latent attention, shared experts."""

from moejax.hf.families.family import (
    ALWAYS,
    DENSE,
    EXPERTS,
    GIVEN,
    LATENT,
    NORMS,
    ROUTER,
    SIZES,
    SWIGLU,
    Family,
    network_rules,
)
from moejax.hf.fields import attention, experts, layers, positions
from moejax.hf.tensors import Rule

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

FAMILIES: dict[str, Family] = {
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
        translations=(positions.latent_rope, attention.one_head_each, attention.rotary_head)
        + (layers.next_tokens,),
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
        translations=(positions.latent_rope, attention.one_head_each, experts.group_method),
        tensors=DEEPSEEK_TENSORS[:-1],
    ),
}
