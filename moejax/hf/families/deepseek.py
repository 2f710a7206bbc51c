"""DeepSeek-V2, -V3 and -V3.2, Kimi K2, GLM-5, A.X-K1: latent attention, shared experts."""

from dataclasses import replace

from moejax.hf.families.family import (
    DEEPSEEK_FIXED,
    DEEPSEEK_OURS,
    DEEPSEEK_TENSORS,
    DENSE_FIRST,
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
    LeftOut,
)
from moejax.hf.fields import attention, experts, layers, positions
from moejax.hf.tensors import Rule

DEEPSEEK = {**SIZES, **SPARSE, **DENSE_FIRST, **LATENT_SIZES}
DEEPSEEK_GIVEN = GIVEN | {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}

INDEXED = {**SIZES, **SPARSE, **GROUPS, **LATENT_SIZES}
INDEXED |= {"intermediate_size": "dense_hidden_size", "index_topk": "attention.longest"}
"""Sparse attention (DeepSeek-V3.2): of so many tokens all are chosen, of more the best."""
INDEXER = LeftOut(
    r"\.self_attn\.indexer\.",
    "the indexers of sparse attention: without them the model is the same for texts of at most"
    " index_topk tokens, and longer ones are refused",
)
INDEXED_LAYERS = (
    *LATENT_POSITIONS,
    layers.mlp_layer_types(lambda hf: hf["first_k_dense_replace"]),
    layers.next_tokens,
)
EXPERT_NAMES = ("n_routed_experts", "num_experts", "num_local_experts")
IMAGES = LeftOut(
    r"^(model\.)?(vision_tower|mm_projector|multi_modal_projector)\.",
    "what sees images",
    needed=False,
)
"""Of Kimi K2.5."""

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

V32 = Family(
    architecture="DeepseekV32ForCausalLM",
    fields=INDEXED,
    defaults=DEEPSEEK_GIVEN
    | {"norm_topk_prob": True, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4}
    | {"n_shared_experts": 1, "first_k_dense_replace": 3, "routed_scaling_factor": 2.5}
    | {"max_position_embeddings": 163_840, "index_topk": 2048},
    fixed=DEEPSEEK_FIXED | SIGMOID,
    ours=DEEPSEEK_OURS | {"moe.router": "deepseek_v3"},
    translations=INDEXED_LAYERS,
    tensors=(*DEEPSEEK_TENSORS, *SELECTION_BIAS),
    full_attention="indexed_attention",
    left_out=(INDEXER,),
    synonyms=(EXPERT_NAMES,),
)

OUTPUT_NORM = "post_mlp_layernorm.weight"
NOT_THEIRS = ("first_k_dense_replace", "num_nextn_predict_layers")

FAMILIES: dict[str, Family] = {
    "deepseek_v3": V3,
    "kimi_k2": replace(V3, left_out=(IMAGES,)),  # another name
    "deepseek_v32": V32,
    "glm_moe_dsa": replace(
        V32,
        architecture="GlmMoeDsaForCausalLM",
        defaults=GIVEN
        | ONE_GROUP
        | {"kv_lora_rank": 512, "q_lora_rank": 2048, "qk_rope_head_dim": 64}
        | {"qk_nope_head_dim": 192, "v_head_dim": 256, "rms_norm_eps": 1e-5}
        | {"norm_topk_prob": True, "num_experts_per_tok": 8, "n_shared_experts": 1}
        | {"first_k_dense_replace": 3, "routed_scaling_factor": 2.5}
        | {"max_position_embeddings": 202_752, "index_topk": 2048},
    ),
    "deepseek_v2": Family(
        architecture="DeepseekV2ForCausalLM",
        fields=DEEPSEEK,
        defaults=DEEPSEEK_GIVEN
        | {"n_shared_experts": 2, "first_k_dense_replace": 0, "routed_scaling_factor": 1.0}
        | {"topk_method": "greedy", "max_position_embeddings": 2048},
        fixed=DEEPSEEK_FIXED | {"norm_topk_prob": False, "scoring_func": "softmax"},
        ours=DEEPSEEK_OURS | {"moe.router": "deepseek_v2"},
        translations=(
            positions.latent_rope,
            attention.one_head_each,
            experts.group_method,
            experts.sequence_loss,
        ),
        tensors=DEEPSEEK_TENSORS,
    ),
    # With a norm on what routed layers give.
    "axk1": replace(
        V3,
        architecture="AXK1ForCausalLM",
        fields={field: path for field, path in V3.fields.items() if field not in NOT_THEIRS},
        defaults={field: value for field, value in V3.defaults.items() if field not in NOT_THEIRS}
        | {"max_position_embeddings": 32_768},
        ours=V3.ours | {"norm_place": "pre_and_experts"},
        translations=(
            *LATENT_POSITIONS,
            layers.mlp_layer_types(lambda hf: hf.get("first_k_dense_replace", 1)),
        ),
        tensors=(*V3.tensors, Rule(OUTPUT_NORM, "feed_forward_output_norm/scale_D")),
        left_out=(LeftOut(rf"\.{OUTPUT_NORM}$", "norms that dense layers do not use", False),),
        may_lack_bias=True,
    ),
}
