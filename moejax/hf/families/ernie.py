"""ERNIE 4.5: pairs that positions rotate lie side by side."""

from dataclasses import replace

from moejax.config.model import ModelConfig
from moejax.hf.families.family import (
    ALWAYS,
    DENSE,
    EXPERTS,
    GIVEN,
    GROUPED,
    KEYS,
    LITTLE_LOSS,
    LOSS,
    NORMS,
    QUERIES,
    ROUTER,
    SHARED,
    SIZES,
    SWIGLU,
    VALUES_AND_OUT,
    Family,
    LeftOut,
)
from moejax.hf.fields import layers
from moejax.hf.fields.translation import Fields, Translation
from moejax.hf.tensors import Rule


def _read_routed(hf: Fields) -> Fields:
    count, start = hf["num_hidden_layers"], hf["moe_layer_start_index"]
    end, interval = hf.get("moe_layer_end_index", -1), hf["moe_layer_interval"]
    last = count - 1 if end == -1 else end
    return layers.name_routed(
        [(i + 1) % interval == 0 and start <= i <= last for i in range(count)],
        f"moe_layer_start_index {start}, moe_layer_end_index {end}, moe_layer_interval {interval}",
    )


def _write_routed(model: ModelConfig) -> Fields:
    return {
        "moe_layer_start_index": model.moe.first_dense,
        "moe_layer_end_index": model.num_layers - 1,
        "moe_layer_interval": model.moe.every,
    }


FAMILIES: dict[str, Family] = {
    "ernie4_5_moe": Family(
        architecture="Ernie4_5_MoeForCausalLM",
        fields={
            **SIZES,
            **LOSS,
            "intermediate_size": "dense_hidden_size",
            "moe_intermediate_size": "moe.hidden_size",
            "moe_num_experts": "moe.num_experts",
            "moe_k": "moe.top_k",
            "moe_num_shared_experts": "moe.shared_experts",
        },
        defaults=GIVEN
        | LITTLE_LOSS
        | {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "max_position_embeddings": 131_072}
        | {"num_key_value_heads": 4, "tie_word_embeddings": True}
        | {"moe_k": 6, "moe_num_shared_experts": 2}
        | {"moe_layer_start_index": 1, "moe_layer_interval": 1},
        fixed=SWIGLU | {"use_bias": False, "moe_norm_min": 1e-12},
        ours=ALWAYS | {"qk_norm": False, "moe.router": "ernie4_5"},
        translations=(*GROUPED, Translation(_read_routed, _write_routed)),
        tensors=(
            *NORMS,
            *(replace(rule, columns="queries") for rule in (*QUERIES, *KEYS)),
            *VALUES_AND_OUT,
            *DENSE,
            *ROUTER,
            *EXPERTS,
            *SHARED,
            Rule("mlp.moe_statics.e_score_correction_bias", "bias_LE", row=True),
        ),
        left_out=(
            LeftOut(r"^model\.mtp_", "the layers that predict a second token", needed=False),
        ),
        synonyms=(
            ("num_experts", "moe_num_experts"),
            ("num_experts_per_tok", "moe_k"),
        ),
    ),
}
