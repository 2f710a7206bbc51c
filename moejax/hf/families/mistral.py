"""Mistral Small 4: latent attention, a softmax for all experts."""

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.hf.families.family import (
    DEEPSEEK_FIXED,
    DEEPSEEK_OURS,
    DENSE,
    DENSE_FIRST,
    GIVEN,
    LATENT,
    LATENT_SIZES,
    NORMS,
    ONE_GROUP,
    ROUTER,
    SHARED,
    SIZES,
    SPARSE,
    Family,
)
from moejax.hf.fields import attention, positions
from moejax.hf.fields.translation import Fields, Translation, check_allowed
from moejax.hf.tensors import Rule

POSITIONS = {
    "rope_type": "yarn",
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
BETA = "llama_4_scaling_beta"


def _read_positions(hf: Fields) -> Fields:
    """Queries are multiplied by ``1 + beta ln(1 + floor(position / original length))``, which is 1
    within the original length: up to there the model is read.
    """
    found = dict(hf.get("rope_scaling") or hf["rope_parameters"])
    share = hf["qk_rope_head_dim"] / (hf["qk_rope_head_dim"] + hf["qk_nope_head_dim"])
    for name, wanted in ((BETA, POSITIONS[BETA]), ("partial_rotary_factor", share)):
        value = found.pop(name, wanted)
        check(value == wanted, f"{name} is {value}: only {wanted} is supported.")
    ours = positions.latent_rope.read(hf | {"rope_scaling": None, "rope_parameters": found})
    return ours | {"attention.longest": found["original_max_position_embeddings"]}


def _check_head(hf: Fields) -> Fields:
    return check_allowed(hf, "head_dim", (None, hf["qk_rope_head_dim"] + hf["qk_nope_head_dim"]))


def _write_positions(model: ModelConfig) -> Fields:
    written = positions.latent_rope.write(model)
    if model.rope.scaling != "none":
        share = model.rotary_size / model.query_head_size
        more = {BETA: POSITIONS[BETA], "partial_rotary_factor": share}
        for name in ("rope_parameters", "rope_scaling"):
            written[name] = written[name] | more
    return written


FAMILIES: dict[str, Family] = {
    "mistral4": Family(
        architecture="Mistral4ForCausalLM",
        fields={**SIZES, **SPARSE, **DENSE_FIRST, **LATENT_SIZES}
        | {"norm_topk_prob": "moe.renormalise"},
        defaults=GIVEN
        | {"kv_lora_rank": 256, "q_lora_rank": 1024, "qk_rope_head_dim": 64}
        | {"qk_nope_head_dim": 64, "v_head_dim": 128, "rope_parameters": POSITIONS}
        | {"n_shared_experts": 1, "num_experts_per_tok": 4, "norm_topk_prob": True}
        | {"routed_scaling_factor": 1.0, "first_k_dense_replace": 0}
        | {"max_position_embeddings": 1_048_576},
        fixed=DEEPSEEK_FIXED | ONE_GROUP | {"rope_interleave": True},
        ours=DEEPSEEK_OURS | {"moe.router": "qwen3_moe"},
        translations=(
            Translation(_check_head, lambda model: {}),
            Translation(_read_positions, _write_positions),
            attention.one_head_each,
        ),
        tensors=(
            *NORMS,
            *LATENT,
            *DENSE,
            *ROUTER,
            Rule(
                "mlp.experts.gate_up_proj",
                ("moe/w_gate_EDF", "moe/w_up_EDF"),
                transpose=True,
                columns="halves",
            ),
            Rule("mlp.experts.down_proj", "moe/w_down_EFD", transpose=True),
            *SHARED,
        ),
    ),
}
