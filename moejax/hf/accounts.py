"""Which tensor on disk is which array of ours: every one of both, or a message that names it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NoReturn

from moejax.config.errors import CheckpointError
from moejax.config.model import ModelConfig
from moejax.hf.codecs import Codec, Packed, Source, is_unused, list_parts
from moejax.hf.families import FAMILIES
from moejax.hf.families.family import NEXT_TOKEN_COPIES, NEXT_TOKENS, WHOLE
from moejax.hf.files import Tensor
from moejax.hf.tensors import ArrayPath, Entry, Rule
from moejax.models import layer_runs
from moejax.models.layer_runs import locate_layers

BIAS: ArrayPath = ("bias_LE",)
"""The path of the selection bias, which is no parameter."""
TWICE = "what config.json or another tensor says as well"
"""A reason for leaving a tensor out: nothing is lost."""
INPUTS = "scales of what weights are multiplied by: they are computed in 16 or 32 bits here"
SIGNS = ("_scale_inv", "_blocks", "_packed")
"""Ends of names that only quantised weights have."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LEAVE_OUT = "--next-tokens False leaves out the layers that predict further tokens."
DERIVED = re.compile(r"\.rotary_emb\.inv_freq$")
"""Tensors that follow from the config, in old checkpoints."""


def list_entries(
    family: str,
    config: ModelConfig,
    shapes: dict[ArrayPath, tuple[int, ...]],
    there: Iterable[str] = (),
) -> list[Entry]:
    """All tensors of a model, in the order of its layers. ``shapes`` are those of our arrays;
    ``there`` are the names on disk, where the family has tensors in more than one form.

    Raises ``CheckpointError`` for an array that the family has no tensor for.
    """
    rules = FAMILIES[family].choose_rules(there)
    found = list(_generate_entries(rules, config, shapes))
    claimed = {path for entry in found for path in entry.paths}
    left = sorted("/".join(path) for path in set(shapes) - claimed)
    if left:
        raise CheckpointError(f"{family} models have no tensor for {', '.join(left[:5])}.")
    return found


def _generate_entries(
    rules: tuple[Rule, ...], config: ModelConfig, shapes: dict[ArrayPath, tuple[int, ...]]
) -> Iterator[Entry]:
    for rule in WHOLE:
        path = tuple(rule.names[0].split("/"))
        if path in shapes:
            yield Entry(rule, (rule.theirs,), (path,), None, rule.shape([shapes[path]]))
    yield from _generate_next_tokens(config, shapes)
    routed = 0
    for layer, (above, repeat) in enumerate(locate_layers(config)):
        for rule in rules:
            bias = rule.ours == BIAS[0]
            if bias and not config.routed_blocks[layer]:
                continue
            paths = (BIAS,) if bias else tuple((*above, *n.split("/")) for n in rule.names)
            if not all(path in shapes for path in paths):
                continue
            ours = [shapes[path][1 + rule.is_per_expert :] for path in paths]
            count = shapes[paths[0]][1] if rule.is_per_expert else 1
            names = tuple(f"model.layers.{layer}.{rule.theirs}".format(e=e) for e in range(count))
            yield Entry(rule, names, paths, routed if bias else repeat, rule.shape(ours))
        routed += config.routed_blocks[layer]


def _generate_next_tokens(
    config: ModelConfig, shapes: dict[ArrayPath, tuple[int, ...]]
) -> Iterator[Entry]:
    """What the layers that predict further tokens have beside the tensors of their blocks."""
    for number in range(config.next_tokens):
        for rule in NEXT_TOKENS:
            path = (layer_runs.NEXT_TOKENS, *rule.names[0].split("/"))
            name = f"model.layers.{config.num_layers + number}.{rule.theirs}"
            yield Entry(rule, (name,), (path,), number, rule.shape([shapes[path][1:]]))


def name_copies(config: ModelConfig) -> dict[str, str]:
    """The tensors that the layers that predict further tokens repeat, and what they repeat."""
    return {
        f"model.layers.{config.num_layers + number}.{copy}": EMBEDDING
        if config.tie_embeddings
        else of
        for number in range(config.next_tokens)
        for copy, of in NEXT_TOKEN_COPIES.items()
    }


def add_copies(entries: list[Entry], config: ModelConfig) -> list[Entry]:
    """All tensors to be written: those of ``list_entries``, and what is repeated of them, as what
    serves such files reads it there.
    """
    of = {entry.names[0]: entry for entry in entries}
    copies = [replace(of[name], names=(copy,)) for copy, name in name_copies(config).items()]
    return entries + copies


def lacks_bias(family: str, there: dict[str, Tensor]) -> bool:
    """Whether the files have no selection bias, and need not have it."""
    names = [rule.theirs for rule in FAMILIES[family].tensors if rule.ours == BIAS[0]]
    return FAMILIES[family].may_lack_bias and not any(n.endswith(tuple(names)) for n in there)


def has_next_tokens(config: ModelConfig, there: dict[str, Tensor]) -> bool:
    """Whether the files have any of the layers that predict further tokens: many have not, though
    their config.json speaks of them.
    """
    layers = range(config.num_layers, config.num_layers + config.next_tokens)
    return any(find_layer(name) in layers for name in there)


def count_tensors(family: str, config: ModelConfig, hf: dict[str, Any], codec: Codec | None) -> int:
    """The most tensors that a model may have on disk, those among them that are left out."""
    rules = FAMILIES[family].tensors
    experts = sum(rule.is_per_expert for rule in rules) * config.moe.num_experts
    layers = config.num_layers + (hf.get("num_nextn_predict_layers") or 0)
    layers += len(FAMILIES[family].left_out)  # each at most as large as a layer
    parts = 1 if codec is None else 1 + len(codec.suffixes)
    more = len(NEXT_TOKENS) + len(NEXT_TOKEN_COPIES)
    return (len(WHOLE) + layers * (len(rules) + experts + more)) * parts


def check_numbers(family: str, config: ModelConfig, there: dict[str, Tensor]) -> None:
    """Refuse a model of far more layers or experts than there are tensors, before they are listed.
    Raises ``CheckpointError``.
    """
    experts = any(rule.is_per_expert for rule in FAMILIES[family].tensors)
    for number, what in (
        (config.num_layers, "layers"),
        (config.moe.num_experts * experts * any(config.routed_layers), "experts"),
    ):
        if number > len(there) + 1000:
            raise CheckpointError(
                f"config.json says {number:,} {what}, but the files have {len(there):,} tensors in"
                f" all."
            )


def check_tensors(
    wanted: list[Entry],
    there: dict[str, Tensor],
    hf: dict[str, Any],
    config: ModelConfig,
    codec: Codec | None,
) -> tuple[dict[str, Source], dict[str, str]]:
    """Where each wanted tensor lies on disk, and of those that are left out the reason, by name.
    Every tensor on disk must be wanted, and every wanted one there, in its shape, with all of its
    parts. Raises ``CheckpointError`` with all that is wrong.
    """
    sources: dict[str, Source] = {}
    claimed: set[str] = set()
    wrong: dict[str, list[str]] = {}
    entries = {name: entry for entry in wanted for name in entry.names}
    for name, entry in entries.items():
        parts = list_parts(name, entry.shape, there, None if entry.rule.row else codec)
        claimed.update(part_name for part_name, _ in parts)
        found = [there.get(part_name) for part_name, _ in parts]
        whole = tuple(tensor for tensor in found if tensor is not None)
        for (part_name, part), tensor in zip(parts, found, strict=True):
            if tensor is None:
                wrong.setdefault("missing", []).append(part_name)
            elif tensor.kind not in part.kinds:
                told = f"{part_name} {tensor.kind} instead of {' or '.join(part.kinds)}"
                wrong.setdefault("of another type", []).append(told)
            elif tensor.shape != part.shape:
                told = f"{part_name} {list(tensor.shape)} instead of {list(part.shape)}"
                wrong.setdefault("misshapen", []).append(told)
        if codec is not None and len(parts) > 1:
            sources[name] = Packed(codec, whole, entry.shape)
        elif whole:
            sources[name] = whole[0]
    left_out: dict[str, str] = {}
    unknown = []
    for name in there:
        if name in claimed:
            continue
        reason = _explain(name, hf, config) or INPUTS * is_unused(name, there, codec)
        if reason:
            left_out[name] = reason
        else:
            unknown.append(name)
    if unknown:
        wrong["unknown"] = unknown
    if wrong:
        _refuse(wrong, wanted, there, config, codec)
    return sources, left_out


def _refuse(
    wrong: dict[str, list[str]],
    wanted: list[Entry],
    there: dict[str, Tensor],
    config: ModelConfig,
    codec: Codec | None,
) -> NoReturn:
    lines = [
        f"  {what}: {', '.join(wrong[what][:3])}"
        + f" and {len(wrong[what]) - 3} more" * (len(wrong[what]) > 3)
        for what in ("unknown", "missing", "of another type", "misshapen")
        if what in wrong
    ]
    experts = {int(n) for name in there for n in re.findall(r"\.experts\.(\d+)\.", name)}
    counted = max(experts, default=-1) + 1
    if any(entry.rule.is_per_expert for entry in wanted) and counted != config.moe.num_experts:
        lines.append(
            f"  config.json says {config.moe.num_experts} experts, but the files have {counted}."
        )
    if codec is None and any(
        tensor.kind.startswith("F8") or name.endswith(SIGNS) for name, tensor in there.items()
    ):
        lines.append("  config.json has no quantization_config, which says how codes are read.")
    named = [name.partition(" ")[0] for names in wrong.values() for name in names]
    if config.next_tokens and all((find_layer(n) or 0) >= config.num_layers for n in named):
        lines.append(f"  {LEAVE_OUT}")
    raise CheckpointError("tensors and config.json do not agree:\n" + "\n".join(lines))


def _explain(name: str, hf: dict[str, Any], config: ModelConfig) -> str:
    """Why a tensor that is no parameter of ours may be left out; empty if there is no reason."""
    if DERIVED.search(name) or (name == "lm_head.weight" and config.tie_embeddings):
        return TWICE
    if part := find_left_out(name, hf):
        return part
    if config.next_tokens:
        return TWICE * (name in name_copies(config))
    first = config.num_layers
    last = first + (hf.get("num_nextn_predict_layers") or 0) - 1
    if not first <= (find_layer(name) or 0) <= last:
        return ""
    several = f"layers {first} to {last}, which predict a second token"
    return several if last > first else f"layer {first}, which predicts a second token"


def find_left_out(name: str, hf: dict[str, Any]) -> str:
    """What a tensor is that its family leaves out, in words; empty if it is none."""
    parts = FAMILIES[hf["model_type"]].left_out
    return next((part.what for part in parts if re.search(part.pattern, name)), "")


def find_layer(name: str) -> int | None:
    """The layer that a tensor on disk is in, or None; of what is derived, none."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return None if layer is None or DERIVED.search(name) else int(layer[1])
