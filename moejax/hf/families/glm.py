"""GLM-4.5 to 4.7: DeepSeek's experts; grouped queries, half of each head rotated, or latent."""

from moejax.hf.families.family import (
    BIASES,
    BY_BIAS,
    DEEPSEEK_FIXED,
    DEEPSEEK_OURS,
    DEEPSEEK_TENSORS,
    DENSE,
    DENSE_FIRST,
    EXPERTS,
    GIVEN,
    GROUPED_QUERIES,
    GROUPS,
    LATENT_POSITIONS,
    LATENT_SIZES,
    NORMS,
    ONE_GROUP,
    QUERY_NORMS,
    ROUTER,
    SELECTION_BIAS,
    SHARED,
    SIGMOID,
    SIZES,
    SPARSE,
    SWIGLU,
    Family,
)
from moejax.hf.fields import attention, layers, positions

FAMILIES: dict[str, Family] = {
    "glm4_moe": Family(
        architecture="Glm4MoeForCausalLM",
        fields={**SIZES, **SPARSE, **DENSE_FIRST, **GROUPS, "use_qk_norm": "qk_norm"},
        defaults=GIVEN
        | ONE_GROUP
        | {"rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "max_position_embeddings": 131_072}
        | {"num_key_value_heads": 8, "attention_bias": False, "use_qk_norm": False}
        | {"num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}
        | {"norm_topk_prob": True, "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 1},
        fixed=SWIGLU,
        ours=BY_BIAS | {"moe.router": "deepseek_v3"},
        translations=(positions.part_rope, attention.heads, attention.query_key_value_bias)
        + (layers.next_tokens,),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES,
            *BIASES,
            *QUERY_NORMS,
            *DENSE,
            *ROUTER,
            *EXPERTS,
            *SHARED,
            *SELECTION_BIAS,
        ),
    ),
    "glm4_moe_lite": Family(
        architecture="Glm4MoeLiteForCausalLM",
        fields={**SIZES, **SPARSE, **GROUPS, **LATENT_SIZES}
        | {"intermediate_size": "dense_hidden_size"},
        defaults=GIVEN
        | ONE_GROUP
        | {"kv_lora_rank": 512, "q_lora_rank": 768, "qk_rope_head_dim": 64}
        | {"qk_nope_head_dim": 192, "v_head_dim": 256, "rms_norm_eps": 1e-5}
        | {"n_shared_experts": 1, "num_experts_per_tok": 4, "norm_topk_prob": True}
        | {"routed_scaling_factor": 1.8, "max_position_embeddings": 202_752},
        fixed=DEEPSEEK_FIXED | SIGMOID,
        ours=DEEPSEEK_OURS | {"moe.router": "deepseek_v3"},
        translations=(*LATENT_POSITIONS, layers.mlp_layer_types(lambda hf: 1))
        + (layers.next_tokens,),
        tensors=(*DEEPSEEK_TENSORS, *SELECTION_BIAS),
    ),
}
