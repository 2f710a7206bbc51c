"""From a ``config.json`` to a ``ModelConfig``, and back."""

import dataclasses
import math
import zlib
from typing import Any

from flax.traverse_util import unflatten_dict

from moejax.config.checks import LARGEST, check, shorten
from moejax.config.errors import ConfigError
from moejax.config.files import from_dict
from moejax.config.model import MOST_LAYERS, ModelConfig
from moejax.hf.codecs import find_codec
from moejax.hf.families import FAMILIES
from moejax.hf.families.family import Family
from moejax.hf.fields.experts import coefficient_of_pool
from moejax.hf.fields.layers import KINDS, layer_types, next_tokens, no_next_tokens
from moejax.hf.text_part import take_text_config
from moejax.routing import token_choice

KEPT = ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
"""Fields that mean the same in all families."""
NEXT_TOKENS = ("num_nextn_predict_layers", "num_mtp_layers")
"""Two names that are in use for one field."""
COEFFICIENT = "moe.balance.loss_weight"
OPTIONAL_SIZES = ("max_position_embeddings", "num_nextn_predict_layers")
"""Whole numbers that may be left out."""


def find_family(hf: dict[str, Any]) -> str:
    """The family that a ``config.json`` names. Raises ``ConfigError`` if it is none of ours."""
    kind: Any = take_text_config(hf).get("model_type")
    check(
        kind in FAMILIES,
        f"model_type {shorten(kind)} is not supported. There are: {', '.join(FAMILIES)}.",
    )
    return kind


def with_defaults(hf: dict[str, Any]) -> dict[str, Any]:
    """A ``config.json``, with what its family means by a field that is not there."""
    family, hf = FAMILIES[find_family(hf)], take_text_config(hf)
    # Some tools write null where they mean the family's own positions.
    said = {field: x for field, x in hf.items() if x is not None or field != "rope_parameters"}
    for names in (*family.synonyms, NEXT_TOKENS):
        there = {field: hf[field] for field in names if field in hf}
        told = ", but ".join(f"{field} is {shorten(value)}" for field, value in there.items())
        check(len(set(map(repr, there.values()))) < 2, f"{told}: they are two names of one number.")
        said |= {field: value for value in there.values() for field in names}
    return family.defaults | said


def read_config(hf: dict[str, Any]) -> ModelConfig:
    """The settings of a model from its ``config.json``: dropless, in float32.

    Raises ``ConfigError`` that names the field for what is missing or not supported.
    """
    name, hf = find_family(hf), take_text_config(hf)
    family = FAMILIES[name]
    for field, wanted in family.fixed.items():
        found = hf.get(field, wanted)
        check(
            found == wanted,
            f"{field} is {shorten(found)}: only {wanted!r} is supported for {name} models."
            + " Convert quantised weights to bfloat16 first." * field.startswith("quant"),
        )
    find_codec(hf.get("quantization_config"))
    hf = with_defaults(hf)
    needed = {"num_attention_heads", *family.fields}
    missing = sorted(field for field in needed if field not in hf)
    check(not missing, f"config.json has no {', '.join(missing)}.")
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        good = type(hf[field]) is int and hf[field] > 0
        check(good, f"{field} is {shorten(hf[field])}: it must be a whole number greater than 0.")
    layers = hf["num_hidden_layers"]
    check(
        layers <= MOST_LAYERS,
        f"num_hidden_layers is {shorten(layers)}: it must be at most {MOST_LAYERS:,}.",
    )
    for field in OPTIONAL_SIZES:
        good = hf.get(field) is None or type(hf[field]) is int and 0 <= hf[field] <= LARGEST
        check(good, f"{field} is {shorten(hf.get(field))}: it must be a whole number.")
    ours = family.ours | {path: hf[field] for field, path in family.fields.items()}
    try:
        for translation in family.translations:
            ours |= translation.read(hf)
        if COEFFICIENT in ours:
            ours[COEFFICIENT] = float(ours[COEFFICIENT] or 0)
    except KeyError as error:
        raise ConfigError(f"there is no {error.args[0]}, which {name} models need.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"a field is not of its type: {error}.") from error
    except ArithmeticError as error:  # a division by 0, a number too large for a float
        raise ConfigError(f"a field is out of its range: {error}.") from error
    config = from_dict(ModelConfig, unflatten_dict(ours, sep="."))
    kinds = hf.get("layer_types")
    if kinds is not None and layer_types not in family.translations:
        read = [(KINDS | {"full": family.full_attention})[kind] for kind in config.attention_kinds]
        check(
            kinds == read,
            f"layer_types is {shorten(kinds)}: all layers of {name} models are alike"
            f" ({shorten(read)} with sliding_window {config.attention.window}).",
        )
    return config


def write_config(
    config: ModelConfig, original: dict[str, Any] | None = None, family: str | None = None
) -> dict[str, Any]:
    """The ``config.json`` of a model, of this family or the first that can hold it.

    ``original`` is the one that it was read from, if it was: it is kept where it still says the
    same, without its ``quantization_config``. Raises ``ConfigError`` that says for each family what
    it has no place for.
    """
    said = {f: value for f, value in (original or {}).items() if f != "quantization_config"}
    own = said.get("model_type")
    names = [family] if family else sorted(FAMILIES, key=lambda name: name != own)
    reasons = []
    for name in names:
        check(name in FAMILIES, f"--family {name}: there are {', '.join(FAMILIES)}.")
        lacking = [part.what for part in FAMILIES[name].left_out if part.needed]
        wrong = ", ".join(lacking) + " is left out" if lacking else ""
        wrong = wrong or explain_misfit(config, FAMILIES[name], name)
        if wrong:
            reasons.append(f"  {name}: {wrong}")
            continue
        base = said if name == own else {}
        base = base | _write_next_tokens(config, FAMILIES[name], base)
        if name == own and not list_differences(
            collect_computation(read_config(base)), collect_computation(config)
        ):
            return base
        kept = {field: said[field] for field in KEPT if field in said}
        return _limit(base | _write_fields(config, FAMILIES[name], name) | kept, config)
    if config.next_tokens:
        reasons.append(
            "  `moejax export --next-tokens False` leaves out what predicts further tokens."
        )
    raise ConfigError(
        "no family of Hugging Face's models can hold this one:\n" + "\n".join(reasons)
    )


def _write_next_tokens(config: ModelConfig, family: Family, said: dict[str, Any]) -> dict[str, Any]:
    """How many further tokens a family's ``config.json`` says to predict, under the names that it
    uses; nothing for a family without such layers.
    """
    written: dict[str, Any] = {}
    for translation in (next_tokens, no_next_tokens):
        if translation in family.translations:
            written |= translation.write(config)
    return written | {
        name: count for count in written.values() for name in NEXT_TOKENS if name in said
    }


def _limit(written: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """A ``config.json`` that lets the model read no longer texts than it may, whatever its family
    says of that.
    """
    longest, said = config.attention.longest, written["max_position_embeddings"]
    if longest is not None and read_config(written).attention.longest is None:
        return written | {"max_position_embeddings": min(longest, said or longest)}
    return written


def explain_misfit(config: ModelConfig, family: Family, name: str) -> str:
    """What a family has no place for, in words; empty if it can hold the model."""
    try:
        back = read_config(_write_fields(config, family, name))
    except ConfigError as error:
        return str(error)
    except (TypeError, AttributeError, ZeroDivisionError):
        return "another kind of model"
    return ", ".join(list_differences(collect_computation(config), collect_computation(back)))


def _write_fields(config: ModelConfig, family: Family, name: str) -> dict[str, Any]:
    hf: dict[str, Any] = {"model_type": name, "architectures": [family.architecture]}
    hf |= {field: value for field, value in family.fixed.items() if value is not None}
    hf["max_position_embeddings"] = 32768  # nobody says
    for field, path in family.fields.items():
        hf[field] = _read_setting(config, path)
    for translation in family.translations:
        hf |= translation.write(config)
    return hf


def _read_setting(config: ModelConfig, path: str) -> Any:
    """A setting by its path, with what a default stands for."""
    rule = config.moe.built_router.token_rule
    special = {
        "dense_hidden_size": config.dense_hidden,
        "head_size": config.plain_head_size,
        "attention.scale": config.attention.scale or config.query_head_size**-0.5,
        "attention.value_head_size": config.value_head_size,
        "moe.renormalise": rule and rule.renormalise,
        "moe.weight_scale": rule and rule.weight_scale,
        "moe.expert_groups": config.moe.expert_groups or 1,
        COEFFICIENT: coefficient_of_pool(config),
        "moe.kept_expert_groups": config.moe.kept_expert_groups or config.moe.expert_groups or 1,
    }
    if path in special:
        return special[path]
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


def collect_computation(config: ModelConfig) -> dict[str, Any]:
    """What a model computes when it is used, by flag: with defaults resolved, and without what
    matters in training alone.
    """
    names = "num_layers width num_heads vocab_size activation norm_epsilon zero_centred_norm"
    names += " tie_embeddings embedding_scale residual_scale rope_theta qk_norm"
    attention, found = config.attention, {name: getattr(config, name) for name in names.split()}
    plain = config.norm_place == "pre_and_experts" and not any(config.routed_layers)
    found |= {
        "norm_place": "pre" if plain else config.norm_place,
        "num_kv_heads": config.key_value_heads,
        "head_size": config.plain_head_size,
        "logit_scale": config.logit_multiplier,
        "attention.kv_rank": attention.kv_rank,
        "attention.query_rank": attention.query_rank,
        "attention.rope_head_size": config.rotary_size if config.is_latent else None,
        "attention.rotary_size": None if config.is_latent else config.rotary_size,
        "attention.output_gate": attention.output_gate,
        "attention.value_head_size": config.value_head_size,
        "attention.bias": attention.bias,
        "attention.sinks": attention.sinks,
        "attention.window": config.windows,
        "attention.kinds": config.attention_kinds,
        "delta": config.delta_sizes if "delta" in config.attention_kinds else None,
        "attention.rotary_in": tuple(rotation is not None for rotation in config.rotations),
        "attention.scale": attention.scale or config.query_head_size**-0.5,
        "moe.every": config.routed_layers,
        "next_tokens": config.next_tokens,
    }
    others = set(config.rotations) - {None, (config.rope_theta, config.rope)}
    found["attention.window_rope_theta"] = min(
        (theta for theta, _ in filter(None, others)), default=None
    )
    if config.qk_norm:
        found["attention.qk_norm_over"] = attention.qk_norm_over
        found["attention.qk_norm_place"] = attention.qk_norm_place
    found["rope.scaling"] = config.rope.scaling
    if config.rope.scaling != "none":
        fields = dataclasses.fields(config.rope)
        found |= {f"rope.{f.name}": getattr(config.rope, f.name) for f in fields}
    if not all(config.routed_layers):
        found["dense_hidden_size"] = config.dense_hidden
    if any(config.routed_layers):
        found |= _collect_experts(config)
    return {f"--model.{name.replace('_', '-')}": value for name, value in found.items()}


def _collect_experts(config: ModelConfig) -> dict[str, Any]:
    moe, router = config.moe, config.moe.built_router
    names = ["num_experts", "top_k", "hidden_size", "expert_bias"]
    found = {name: getattr(moe, name) for name in (*names, "identity_experts", "null_experts")}
    found["shared_experts"] = f"of width {moe.shared_width}" if moe.shared_width else 0
    found["shared_gate"] = moe.shared_gate and moe.shared_experts > 0
    found["balance.bias_update"] = "a selection bias" if moe.has_selection_bias else "none"
    rule = router.token_rule
    if router.function is token_choice.choose and rule is not None:
        grouped = rule.kept_expert_groups not in (None, rule.expert_groups)
        names = ["score", "renormalise", "weight_scale", "weigh"]
        names += ["group_score", "expert_groups", "kept_expert_groups"] if grouped else []
        names += ["bias_on"] if moe.has_selection_bias else []
        names += ["positive"] if rule.positive else []
        names += ["top_p"] if rule.top_p is not None else []
        found["router"] = tuple((name, getattr(rule, name)) for name in names)
        found["router"] += (("a learned bias", router.linear_bias),)
    else:
        found["router"] = moe.router
        if router.counts_tokens:
            found["hash_layers"] = moe.hash_layers
            found["token_counts"] = _sum_up(moe.token_counts)
    return {f"moe.{name}": value for name, value in found.items()}


def _sum_up(counts: tuple[int, ...] | None) -> str:
    """In one word what no line would hold."""
    return f"with the sum {zlib.crc32(repr(counts).encode()):08x}" if counts else "of no text"


def list_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The flags whose values differ, with the value of ``one``."""
    return [
        f"{name} {_write_value(one.get(name), other.get(name))}"
        for name in dict.fromkeys((*one, *other))
        if not _is_same(one.get(name), other.get(name))
    ]


def _write_value(value: Any, other: Any) -> str:
    """A value in words: of the settings of a router those that differ; of the layers, by layer."""
    if not isinstance(value, tuple) or not value:
        return value if isinstance(value, str) else shorten(value)
    if isinstance(value[0], tuple):
        there = dict(other) if isinstance(other, tuple) else {}
        parts = {n: v for n, v in value if n not in there or not _is_same(v, there[n])}
        return "with " + ", ".join(f"{name} {shown}" for name, shown in parts.items())
    kinds = " ".join(str(shown) for shown in dict.fromkeys(value))
    return f"{kinds} in every layer" if len(set(value)) == 1 else f"{kinds}, by layer"


def _is_same(one: Any, other: Any) -> bool:
    numbers = (int, float)
    if isinstance(one, numbers) and isinstance(other, numbers):
        return math.isclose(one, other, rel_tol=1e-9)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one == other
