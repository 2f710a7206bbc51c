"""dots.llm1: DeepSeek's experts, Qwen3's attention."""

from moejax.config.model import ModelConfig
from moejax.hf.families.family import (
    ALL_BIASES,
    BY_BIAS,
    DENSE,
    DENSE_FIRST,
    EXPERTS,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    GROUPS,
    NORMS,
    ONE_GROUP,
    QUERY_NORMS,
    ROUTER,
    SELECTION_BIAS,
    SHARED,
    SIZES,
    SPARSE,
    SWIGLU,
    Family,
)
from moejax.hf.fields import attention, layers
from moejax.hf.fields.translation import Fields, Translation


def _read_windows(hf: Fields) -> Fields:
    """Layers from ``max_window_layers`` on have windows, unless ``layer_types`` says otherwise."""
    first = hf["num_hidden_layers"] if hf["sliding_window"] is None else hf["max_window_layers"]
    numbers = range(hf["num_hidden_layers"])
    kinds = [layers.KINDS["window" if layer >= first else "full"] for layer in numbers]
    return layers.layer_types.read(hf | {"layer_types": hf.get("layer_types") or kinds})


def _write_windows(model: ModelConfig) -> Fields:
    return {"max_window_layers": model.num_layers} | layers.layer_types.write(model)


FAMILIES: dict[str, Family] = {
    "dots1": Family(
        architecture="Dots1ForCausalLM",
        fields={**SIZES, **SPARSE, **DENSE_FIRST, **GROUPS},
        defaults=GIVEN
        | ONE_GROUP
        | {"num_key_value_heads": 32, "attention_bias": False, "max_position_embeddings": 2048}
        | {"first_k_dense_replace": 0, "norm_topk_prob": False, "routed_scaling_factor": 1.0}
        | {"sliding_window": 4096, "max_window_layers": 62},
        fixed=SWIGLU | {"moe_layer_freq": 1, "topk_method": "noaux_tc"},
        ours=BY_BIAS | {"moe.router": "deepseek_v3"},
        translations=(
            *GROUPED,
            attention.attention_bias,
            Translation(_read_windows, _write_windows),
        ),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES,
            *ALL_BIASES,
            *QUERY_NORMS,
            *DENSE,
            *ROUTER,
            *EXPERTS,
            *SHARED,
            *SELECTION_BIAS,
        ),
    ),
}
