"""MiniMax-M2: Mixtral's names, DeepSeek's choice; half of a head is rotated."""

from moejax.config.model import ModelConfig
from moejax.hf.families.family import (
    ALL_ROUTED,
    GIVEN,
    GROUPED_QUERIES,
    LOSS,
    NO_LOSS,
    NORMS,
    QUERY_NORMS,
    SPARSE_BLOCK,
    SWIGLU,
    Family,
)
from moejax.hf.fields import attention, positions
from moejax.hf.fields.translation import Fields, Translation
from moejax.hf.tensors import Rule


def _read_positions(hf: Fields) -> Fields:
    """The released files say how many numbers of a head, transformers says which share."""
    size = hf.get("rotary_dim")
    if size is not None and hf.get(positions.SHARE) is None:
        hf = hf | {positions.SHARE: size / hf["head_dim"]}
    return positions.part_rope.read(hf)


def _write_positions(model: ModelConfig) -> Fields:
    return positions.part_rope.write(model) | {"rotary_dim": model.rotary_size}


FAMILIES: dict[str, Family] = {
    "minimax_m2": Family(
        architecture="MiniMaxM2ForCausalLM",
        fields={field: path for field, path in ALL_ROUTED.items() if field not in LOSS},
        defaults=GIVEN
        | {"rope_theta": 5e6, "max_position_embeddings": 196_608, "head_dim": 128}
        | {"num_key_value_heads": 8, "num_experts_per_tok": 8},
        fixed=SWIGLU
        | {"scoring_func": "sigmoid", "use_routing_bias": True, "use_qk_norm": True}
        | {"shared_intermediate_size": 0},
        ours=NO_LOSS | {"moe.router": "minimax_m2", "attention.qk_norm_over": "width"},
        translations=(Translation(_read_positions, _write_positions), attention.heads),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES,
            *QUERY_NORMS,
            *SPARSE_BLOCK,
            Rule("block_sparse_moe.e_score_correction_bias", "bias_LE"),
        ),
    ),
}
