"""Which tensor on disk is which array of ours: every one of both, or a message that names it."""

import re
from collections.abc import Iterator
from typing import Any

from moejax.config.errors import CheckpointError
from moejax.config.model import ModelConfig
from moejax.hf.families import FAMILIES
from moejax.hf.families.family import WHOLE
from moejax.hf.files import Tensor
from moejax.hf.tensors import ArrayPath, Entry
from moejax.models.layer_runs import locate_layers

BIAS: ArrayPath = ("bias_LE",)
"""The path of the selection bias, which is no parameter."""
DERIVED = re.compile(r"\.rotary_emb\.inv_freq$")
"""Tensors that follow from the config, in old checkpoints."""


def list_entries(
    family: str, config: ModelConfig, shapes: dict[ArrayPath, tuple[int, ...]]
) -> list[Entry]:
    """All tensors of a model, in the order of its layers. ``shapes`` are those of our arrays.

    Raises ``CheckpointError`` for an array that the family has no tensor for.
    """
    found = list(_generate_entries(family, config, shapes))
    claimed = {path for entry in found for path in entry.paths}
    left = sorted("/".join(path) for path in set(shapes) - claimed)
    if left:
        raise CheckpointError(f"{family} models have no tensor for {', '.join(left[:5])}.")
    return found


def _generate_entries(
    family: str, config: ModelConfig, shapes: dict[ArrayPath, tuple[int, ...]]
) -> Iterator[Entry]:
    for rule in WHOLE:
        path = tuple(rule.names[0].split("/"))
        if path in shapes:
            yield Entry(rule, (rule.theirs,), (path,), None, rule.shape([shapes[path]]))
    rules, routed = FAMILIES[family].tensors, 0
    for layer, (above, repeat) in enumerate(locate_layers(config)):
        for rule in rules:
            bias = rule.ours == BIAS[0]
            if bias and not config.routed_layers[layer]:
                continue
            paths = (BIAS,) if bias else tuple((*above, *n.split("/")) for n in rule.names)
            if not all(path in shapes for path in paths):
                continue
            ours = [shapes[path][1 + rule.is_per_expert :] for path in paths]
            count = shapes[paths[0]][1] if rule.is_per_expert else 1
            names = tuple(f"model.layers.{layer}.{rule.theirs}".format(e=e) for e in range(count))
            yield Entry(rule, names, paths, routed if bias else repeat, rule.shape(ours))
        routed += config.routed_layers[layer]


def count_tensors(family: str, config: ModelConfig, hf: dict[str, Any]) -> int:
    """The most tensors that a model may have on disk, those among them that are left out."""
    rules = FAMILIES[family].tensors
    experts = sum(rule.is_per_expert for rule in rules) * config.moe.num_experts
    layers = config.num_layers + (hf.get("num_nextn_predict_layers") or 0)
    return len(WHOLE) + layers * (len(rules) + experts)


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
    wanted: list[Entry], there: dict[str, Tensor], hf: dict[str, Any], config: ModelConfig
) -> tuple[str, ...]:
    """Every tensor on disk must be wanted, and every wanted one there, in its shape; returns the
    names of those that are left out for a reason. Raises ``CheckpointError`` with all that is
    wrong.
    """
    shapes = {name: entry.shape for entry in wanted for name in entry.names}
    others = [name for name in there if name not in shapes]
    left_out = tuple(name for name in others if _may_be_left_out(name, hf, config))
    unknown = [name for name in others if not _may_be_left_out(name, hf, config)]
    missing = [name for name in shapes if name not in there]
    misshapen = [
        f"{name} {list(there[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in there and there[name].shape != shape
    ]
    wrong = [
        f"  {what}: {', '.join(names[:3])}" + f" and {len(names) - 3} more" * (len(names) > 3)
        for what, names in (("unknown", unknown), ("missing", missing), ("misshapen", misshapen))
        if names
    ]
    if not wrong:
        return left_out
    experts = {int(n) for name in there for n in re.findall(r"\.experts\.(\d+)\.", name)}
    counted = max(experts, default=-1) + 1
    if any(entry.rule.is_per_expert for entry in wanted) and counted != config.moe.num_experts:
        wrong.append(
            f"  config.json says {config.moe.num_experts} experts, but the files have {counted}."
        )
    raise CheckpointError("tensors and config.json do not agree:\n" + "\n".join(wrong))


def _may_be_left_out(name: str, hf: dict[str, Any], config: ModelConfig) -> bool:
    """Whether a tensor that is no parameter of ours has its reason."""
    if DERIVED.search(name) or (name == "lm_head.weight" and config.tie_embeddings):
        return True
    last = config.num_layers + (hf.get("num_nextn_predict_layers") or 0)
    return config.num_layers <= (find_layer(name) or 0) < last


def find_layer(name: str) -> int | None:
    """The layer that a tensor on disk is in, or None; of what is derived, none."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return None if layer is None or DERIVED.search(name) else int(layer[1])
