"""GLM."""

from moejax.hf.families.family import (
    DEEPSEEK_FIXED,
    DEEPSEEK_OURS,
    DEEPSEEK_TENSORS,
    GIVEN,
    GROUPS,
    LATENT_POSITIONS,
    LATENT_SIZES,
    ONE_GROUP,
    SELECTION_BIAS,
    SIGMOID,
    SIZES,
    SPARSE,
    Family,
)
from moejax.hf.fields import layers

FAMILIES: dict[str, Family] = {
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
