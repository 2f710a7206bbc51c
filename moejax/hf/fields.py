"""Fields of ``config.json`` that say in another way what ``ModelConfig`` says."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moejax.config.checks import check, shorten
from moejax.config.model import ModelConfig
from moejax.models.rotary import yarn_magnitude

Fields = dict[str, Any]


@dataclass(frozen=True)
class Translation:
    """Both ways between fields of theirs and settings of ours, by dotted path."""

    read: Callable[[Fields], Fields]
    write: Callable[[ModelConfig], Fields]


def _read_heads(hf: Fields) -> Fields:
    heads = hf["num_attention_heads"]
    return {
        "num_kv_heads": hf.get("num_key_value_heads") or heads,
        "head_size": hf.get("head_dim") or hf["hidden_size"] // heads,
    }


heads = Translation(
    _read_heads,
    lambda model: {
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.plain_head_size,
    },
)

# Latent attention: every head has keys and values of its own.
one_head_each = Translation(
    lambda hf: _check_allowed(hf, "num_key_value_heads", (None, hf["num_attention_heads"])),
    lambda model: {"num_key_value_heads": model.num_heads},
)

# Where DeepSeek-V3 has this field, it is another name of the width that positions rotate.
rotary_head = Translation(
    lambda hf: _check_allowed(hf, "head_dim", (None, hf["qk_rope_head_dim"])),
    lambda model: {},
)


def _check_allowed(hf: Fields, name: str, allowed: tuple) -> Fields:
    check(
        hf.get(name) in allowed,
        f"{name} is {shorten(hf.get(name))}: only {' or '.join(map(repr, allowed))} is supported.",
    )
    return {}


def _rope_fields(hf: Fields) -> tuple[str, Fields]:
    """The type of the rotary positions, and their fields, wherever they stand. Where both names are
    there the older one counts, as in transformers.
    """
    found = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    check(
        isinstance(found, dict) and not any(isinstance(value, dict) for value in found.values()),
        f"rope_parameters {shorten(found)}: only one kind for all layers is supported.",
    )
    theta = found.get("rope_theta") or hf.get("rope_theta")
    found = {name: value for name, value in found.items() if value is not None}
    partial = found.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 1.0
    check(partial == 1, f"partial_rotary_factor is {partial}: only 1 is supported.")
    return found.get("rope_type") or found.get("type") or "default", found | {"rope_theta": theta}


def _read_rope(hf: Fields) -> Fields:
    kind, found = _rope_fields(hf)
    plain = {"rope_theta": float(found["rope_theta"])}
    if kind == "default":
        return plain
    name = "original_max_position_embeddings"
    length = hf.get(name) or found.get(name) or hf.get("max_position_embeddings")
    if kind == "linear":
        return plain | {"rope.scaling": kind, "rope.factor": float(found["factor"])}
    if kind == "llama3":
        return plain | {
            "rope.scaling": kind,
            "rope.factor": float(found["factor"]),
            "rope.original_length": length,
            "rope.low_frequency_factor": float(found["low_freq_factor"]),
            "rope.high_frequency_factor": float(found["high_freq_factor"]),
        }
    check(
        kind == "yarn",
        f"rope scaling type {shorten(kind)} is not supported: only default, linear, yarn and llama3"
        f" are.",
    )
    check(
        "factor" in found or "original_max_position_embeddings" in found,
        "rope_parameters of type yarn have no factor.",
    )
    factor = float(found.get("factor") or hf["max_position_embeddings"] / length)
    amplitude, all_dims = found.get("attention_factor"), found.get("mscale_all_dim")
    if amplitude is None and found.get("mscale") and all_dims:
        amplitude = yarn_magnitude(factor, found["mscale"]) / yarn_magnitude(factor, all_dims)
    return plain | {
        "rope.scaling": kind,
        "rope.factor": factor,
        "rope.original_length": length,
        "rope.beta_fast": float(found.get("beta_fast") or 32),
        "rope.beta_slow": float(found.get("beta_slow") or 1),
        "rope.truncate": found.get("truncate", True),
        "rope.amplitude": amplitude,
    }


def _write_rope(model: ModelConfig) -> Fields:
    rope, theta = model.rope, {"rope_theta": model.rope_theta}
    if rope.scaling == "none":
        return theta | {"rope_parameters": theta | {"rope_type": "default"}, "rope_scaling": None}
    found: Fields = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling != "linear":
        found["original_max_position_embeddings"] = rope.original_length
    if rope.scaling == "llama3":
        found["low_freq_factor"] = rope.low_frequency_factor
        found["high_freq_factor"] = rope.high_frequency_factor
    if rope.scaling == "yarn":
        found |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        found["truncate"] = rope.truncate
        if rope.amplitude is not None:
            found["attention_factor"] = rope.amplitude
    # Older tools look for the other two.
    return theta | {"rope_parameters": theta | found, "rope_scaling": found}


rope = Translation(_read_rope, _write_rope)


def _read_latent_rope(hf: Fields) -> Fields:
    """DeepSeek's yarn also multiplies the scores, by ``yarn_magnitude(factor, mscale_all_dim)``
    squared.
    """
    ours, (_, found) = _read_rope(hf), _rope_fields(hf)
    all_dims = found.get("mscale_all_dim")
    if "rope.factor" in ours and all_dims:
        size = hf["qk_nope_head_dim"] + hf["qk_rope_head_dim"]
        magnitude = yarn_magnitude(ours["rope.factor"], all_dims)
        ours["attention.scale"] = size**-0.5 * magnitude**2
    return ours


def _write_latent_rope(model: ModelConfig) -> Fields:
    fields, scale = _write_rope(model), model.attention.scale
    stretch = model.rope.factor
    if scale is not None and model.rope.scaling != "none" and stretch > 1:
        magnitude = math.sqrt(scale * model.query_head_size**0.5)
        found = {"mscale_all_dim": (magnitude - 1) / (0.1 * math.log(stretch))}
        fields["rope_parameters"] |= found
        fields["rope_scaling"] = fields["rope_scaling"] | found
    return fields


latent_rope = Translation(_read_latent_rope, _write_latent_rope)

window = Translation(
    lambda hf: {"attention.window": hf["sliding_window"]},
    lambda model: {"sliding_window": model.attention.window},
)

attention_bias = Translation(
    lambda hf: {"attention.bias": "all" if hf.get("attention_bias") else "none"},
    lambda model: {"attention_bias": model.attention.bias == "all"},
)
qkv_bias = Translation(
    lambda hf: {"attention.bias": "qkv" if hf["qkv_bias"] else "none"},
    lambda model: {"qkv_bias": model.attention.bias == "qkv"},
)


def _read_layer_types(hf: Fields) -> Fields:
    """Which layers have windows; by default every other one, the first included."""
    layers, size = hf["num_hidden_layers"], hf["sliding_window"]
    kinds = hf.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
    full = [kind == "full_attention" for kind in kinds]
    check(
        len(kinds) == layers and set(kinds) <= {"full_attention", "sliding_attention"},
        f"layer_types {shorten(kinds)} must name full_attention or sliding_attention for each of"
        f" the {layers} layers.",
    )
    if all(full) or size is None:
        return {}
    every = full.index(True) + 1 if True in full else 0
    check(
        full == [every > 0 and (i + 1) % every == 0 for i in range(layers)],
        f"layer_types {shorten(kinds)}: only every n-th layer may see all positions.",
    )
    return {"attention.window": size, "attention.full_every": every}


layer_types = Translation(
    _read_layer_types,
    lambda model: {
        "sliding_window": model.attention.window,
        "layer_types": [
            "full_attention" if window is None else "sliding_attention" for window in model.windows
        ],
    },
)


def _read_routed_layers(hf: Fields) -> Fields:
    layers, step = hf["num_hidden_layers"], hf["decoder_sparse_step"] or 1
    dense = set(hf["mlp_only_layers"] or ())
    routed = [i not in dense and (i + 1) % step == 0 for i in range(layers)]
    numbers = [i for i, is_routed in enumerate(routed) if is_routed]
    lowest = numbers[0] if numbers else layers
    every = numbers[1] - lowest if len(numbers) > 1 else lowest + 1
    first = lowest + 1 - every
    check(
        routed == [i >= first >= 0 and (i - first) % every == every - 1 for i in range(layers)],
        f"decoder_sparse_step {step} with mlp_only_layers {shorten(sorted(dense))}: only every n-th"
        f" layer after some dense ones may be routed.",
    )
    return {"moe.first_dense": first, "moe.every": every}


routed_layers = Translation(
    _read_routed_layers,
    lambda model: {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, routed in enumerate(model.routed_layers) if not routed],
    },
)


def _read_shared_expert(hf: Fields) -> Fields:
    width, each = hf["shared_expert_intermediate_size"], hf["moe_intermediate_size"]
    check(
        width > 0 and width % each == 0,
        f"shared_expert_intermediate_size {width} must be a multiple of moe_intermediate_size"
        f" {each}.",
    )
    return {"moe.shared_experts": width // each}


shared_expert = Translation(
    _read_shared_expert,
    lambda model: {
        "shared_expert_intermediate_size": model.moe.shared_experts * model.moe.hidden_size
    },
)


def _read_group_method(hf: Fields) -> Fields:
    method = hf["topk_method"]
    if method == "group_limited_greedy":
        return {"moe.expert_groups": hf["n_group"], "moe.kept_expert_groups": hf["topk_group"]}
    check(
        method == "greedy",
        f"topk_method {shorten(method)} is not supported: only greedy and group_limited_greedy"
        f" are.",
    )
    return {}


def _write_group_method(model: ModelConfig) -> Fields:
    groups, kept = model.moe.expert_groups, model.moe.kept_expert_groups
    if kept is None:
        return {"topk_method": "greedy", "n_group": 1, "topk_group": 1}
    return {"topk_method": "group_limited_greedy", "n_group": groups, "topk_group": kept}


group_method = Translation(_read_group_method, _write_group_method)

logits_scaling = Translation(
    lambda hf: {"logit_scale": 1 / hf["logits_scaling"]},
    lambda model: {"logits_scaling": 1 / model.logit_multiplier},
)

# DeepSeek-V3's layers that predict a second token are left out, and said to be.
no_next_tokens = Translation(lambda hf: {}, lambda model: {"num_nextn_predict_layers": 0})
