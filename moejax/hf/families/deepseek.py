"""DeepSeek-V2 and -V3, and Kimi K2: latent attention, shared experts."""

from moejax.hf.families.family import (
    DEEPSEEK_FIXED,
    DEEPSEEK_OURS,
    DEEPSEEK_TENSORS,
    DENSE_FIRST,
    GIVEN,
    GROUPS,
    LATENT_POSITIONS,
    LATENT_SIZES,
    SELECTION_BIAS,
    SIGMOID,
    SIZES,
    SPARSE,
    Family,
)
from moejax.hf.fields import attention, experts, layers, positions

DEEPSEEK = {**SIZES, **SPARSE, **DENSE_FIRST, **LATENT_SIZES}
DEEPSEEK_GIVEN = GIVEN | {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}

V3 = Family(
    architecture="DeepseekV3ForCausalLM",
    fields=DEEPSEEK | GROUPS,
    defaults=DEEPSEEK_GIVEN
    | {"norm_topk_prob": True, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4}
    | {"n_shared_experts": 1, "first_k_dense_replace": 3, "routed_scaling_factor": 2.5}
    | {"max_position_embeddings": 4096, "num_nextn_predict_layers": 1},
    fixed=DEEPSEEK_FIXED | SIGMOID,
    ours=DEEPSEEK_OURS | {"moe.router": "deepseek_v3"},
    translations=(*LATENT_POSITIONS, layers.next_tokens),
    tensors=(*DEEPSEEK_TENSORS, *SELECTION_BIAS),
)

FAMILIES: dict[str, Family] = {
    "deepseek_v3": V3,
    "kimi_k2": V3,  # another name
    "deepseek_v2": Family(
        architecture="DeepseekV2ForCausalLM",
        fields=DEEPSEEK,
        defaults=DEEPSEEK_GIVEN
        | {"n_shared_experts": 2, "first_k_dense_replace": 0, "routed_scaling_factor": 1.0}
        | {"topk_method": "greedy", "max_position_embeddings": 2048},
        fixed=DEEPSEEK_FIXED | {"norm_topk_prob": False, "scoring_func": "softmax"},
        ours=DEEPSEEK_OURS | {"moe.router": "deepseek_v2"},
        translations=(positions.latent_rope, attention.one_head_each, experts.group_method),
        tensors=DEEPSEEK_TENSORS,
    ),
}
