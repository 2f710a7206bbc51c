"""How rotary positions are written."""

import math

from moejax.config.checks import check, shorten
from moejax.config.model import ModelConfig
from moejax.hf.fields.translation import Fields, Translation
from moejax.models.rotary import yarn_magnitude

SHARE = "partial_rotary_factor"


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
    return found.get("rope_type") or found.get("type") or "default", found | {"rope_theta": theta}


def _find_share(hf: Fields) -> float:
    """Which share of a head is rotated."""
    return _rope_fields(hf)[1].get(SHARE) or hf.get(SHARE) or 1.0


def _read_rope(hf: Fields) -> Fields:
    """Of whole heads."""
    share = _find_share(hf)
    check(share == 1, f"{SHARE} is {share}: only 1 is supported.")
    return _read_scaling(hf)


def _read_scaling(hf: Fields) -> Fields:
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


def _read_part(hf: Fields) -> Fields:
    """Of the beginning of each head, a share of it."""
    heads, share = hf["num_attention_heads"], _find_share(hf)
    width = hf.get("head_dim") or hf["hidden_size"] // heads
    check(
        0 < share <= 1 and int(width * share) > 0,
        f"{SHARE} is {shorten(share)}: it must be a share of the {width} numbers of a head.",
    )
    part = {"attention.rotary_size": int(width * share)} if share < 1 else {}
    return _read_scaling(hf) | part


def _write_part(model: ModelConfig) -> Fields:
    fields, width, part = _write_rope(model), model.plain_head_size, model.rotary_size
    share = part / width
    if int(width * share) < part:  # as readers cut it down to a whole number
        share = math.nextafter(share, 1)
    fields["rope_parameters"][SHARE] = share
    if fields["rope_scaling"]:
        fields["rope_scaling"] = fields["rope_scaling"] | {SHARE: share}
    return fields | {SHARE: share}


part_rope = Translation(_read_part, _write_part)


def _read_by_kind(hf: Fields) -> Fields:
    """Layers with a window, and those that see all positions, have their own."""
    found = hf["rope_parameters"]
    kinds = hf.get("layer_types") or ["full_attention"]
    check(
        isinstance(found, dict) and all(isinstance(found.get(kind), dict) for kind in kinds),
        f"rope_parameters {shorten(found)} must have an object for each kind of layer, such as"
        f" full_attention.",
    )
    each = {kind: _read_rope(hf | {"rope_parameters": found[kind]}) for kind in set(kinds)}
    full, window = each.get("full_attention"), each.get("sliding_attention")
    if window is None or full is None or window == full:
        return full or window or {}
    check(
        set(window) == {"rope_theta"},
        f"rope_parameters {shorten(found)}: positions of sliding_attention may have their own"
        f" rope_theta, but not be stretched in a way of their own.",
    )
    return full | {"attention.window_rope_theta": window["rope_theta"]}


def _write_by_kind(model: ModelConfig) -> Fields:
    full = _write_rope(model)["rope_parameters"]
    theta = model.attention.window_rope_theta
    window = full if theta is None else {"rope_theta": theta, "rope_type": "default"}
    return {"rope_parameters": {"full_attention": full, "sliding_attention": window}}


rope_by_kind = Translation(_read_by_kind, _write_by_kind)


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
