"""How a model's layers are cut into runs, and where their parameters lie.

A run is a loop over a repeated unit of layers. The parameters of the layers at one place of a unit
are stacked over its repeats: ``layers_0/block_1`` has those of the second layer of each unit of the
first run. The modules that predict further tokens (``next_tokens``) are a stack of their own, above
the last layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, NamedTuple

import jax

from moejax.config.attention import AttentionKind
from moejax.config.model import ModelConfig

Path = tuple[str, ...]
RUN, BLOCK = "layers_", "block_"
NEXT_TOKENS, NEXT_BLOCK = "next_tokens", "block"
"""Where the modules lie that predict further tokens, and the block of each."""


class LayerKind(NamedTuple):
    """What decides which parameters a layer has: layers of unlike kinds are in unlike stacks."""

    delta: bool
    """Whether it has a memory (``gated_delta``) in attention's place."""
    routed: bool


Part = Literal["dense", "unit", "rest"]
"""The first dense layers; the repeated units; the layers above that make no whole unit."""


class Run(NamedTuple):
    """Layers that one loop runs."""

    unit: tuple[LayerKind, ...]
    """The layers of the repeated unit."""
    repeats: int
    part: Part

    @property
    def routed(self) -> int:
        """How many layers of a unit are routed."""
        return sum(kind.routed for kind in self.unit)

    @property
    def delta(self) -> int:
        """How many layers of a unit have a memory."""
        return sum(kind.delta for kind in self.unit)


@dataclass(frozen=True)
class Stack:
    """The layers at one place of a run's unit, with their parameters stacked."""

    path: Path
    """Where these are in the parameters of the model."""
    layers: range
    """The layers, from 0 at the bottom of the model."""
    routed: range | None
    """Which of the routed layers they are; None for dense layers."""


def list_kinds(config: ModelConfig) -> list[LayerKind]:
    """The kind of each layer."""
    deltas = [kind == "delta" for kind in config.attention_kinds]
    return [LayerKind(*both) for both in zip(deltas, config.routed_layers, strict=True)]


def list_blocks(config: ModelConfig) -> list[LayerKind]:
    """The kind of each layer, and then of the block of each module that predicts a further token,
    which is as the last layer.
    """
    kinds = list_kinds(config)
    return kinds + kinds[-1:] * config.next_tokens


def cut_layers(config: ModelConfig) -> list[Run]:
    """Cut the layers into runs: the first dense layers, units that have the whole pattern of kinds,
    and the layers above. Of the first and the last, those that are alike and beside each other make
    a run.

    With every second layer of 7 routed after 2 dense ones: D D | D R, D R | D.
    """
    kinds, moe = list_kinds(config), config.moe
    first = moe.first_dense if moe.every else 0
    size = math.lcm(moe.every or 1, _find_period([kind.delta for kind in kinds]))
    units, rest = divmod(len(kinds) - first, size)
    end = len(kinds) - rest
    middle = [Run(tuple(kinds[first : first + size]), units, "unit")] if units else []
    return _group(kinds[:first], "dense") + middle + _group(kinds[end:], "rest")


def _find_period(values: list[bool]) -> int:
    """The length of the shortest pattern that gives these when it is repeated."""
    return next(n for n in range(1, len(values) + 1) if values[n:] == values[:-n])


def _group(kinds: list[LayerKind], part: Part) -> list[Run]:
    """Runs of layers that are alike."""
    return [Run((kind,), len(list(alike)), part) for kind, alike in groupby(kinds)]


def number_in_cache(run: Run) -> list[int]:
    """Of each layer of a run, how many of those before it have attention, or a memory, as it has:
    its place in what the cache has of such layers.
    """
    deltas = [kind.delta for kind in run.unit * run.repeats]
    return [deltas[:i].count(delta) for i, delta in enumerate(deltas)]


def count_kept(config: ModelConfig) -> list[tuple[int, int]]:
    """Of each run, how many layers keep positions, and how many a memory; and of the modules that
    predict further tokens, if there are any.
    """
    runs = [
        ((len(run.unit) - run.delta) * run.repeats, run.delta * run.repeats)
        for run in cut_layers(config)
    ]
    if ahead := config.next_tokens:
        delta = list_kinds(config)[-1].delta
        runs.append((ahead * (not delta), ahead * delta))
    return runs


def with_repeats(config: ModelConfig, repeats: Sequence[int]) -> ModelConfig:
    """The model with so many repeats of each run that ``cut_layers`` gives."""
    first, below = 0, 0
    kinds: list[AttentionKind] = []
    for run, wanted in zip(cut_layers(config), repeats, strict=True):
        first += wanted * (run.part == "dense")
        kinds += config.attention_kinds[below : below + len(run.unit)] * wanted
        below += run.repeats * len(run.unit)
    attention, moe = config.attention, replace(config.moe, first_dense=first)
    if attention.kinds:
        attention = replace(attention, kinds=tuple(kinds))
    return replace(config, num_layers=len(kinds), attention=attention, moe=moe)


def stack_layers(config: ModelConfig) -> list[Stack]:
    """All layers, and the blocks of the modules above them, by the stacks in which their parameters
    lie.
    """
    stacks, layer, routed_layer = [], 0, 0
    for number, run in enumerate(cut_layers(config)):
        unit, repeats = run.unit, run.repeats
        next_layer, next_routed = layer + repeats * len(unit), routed_layer + repeats * run.routed
        for place, kind in enumerate(unit):
            path = (name_run(number), name_block(place))
            below = sum(other.routed for other in unit[:place])
            layers = range(layer + place, next_layer, len(unit))
            among = range(routed_layer + below, next_routed, run.routed or 1)
            stacks.append(Stack(path, layers, among if kind.routed else None))
        layer, routed_layer = next_layer, next_routed
    if ahead := config.next_tokens:
        mine = range(routed_layer, routed_layer + ahead) if config.routed_blocks[-1] else None
        stacks.append(Stack((NEXT_TOKENS, NEXT_BLOCK), range(layer, layer + ahead), mine))
    return stacks


def locate_layers(config: ModelConfig) -> list[tuple[Path, int]]:
    """Of each layer, and each module above them, the path of its stack, and its number there."""
    found = {
        layer: (stack.path, number)
        for stack in stack_layers(config)
        for number, layer in enumerate(stack.layers)
    }
    return [found[layer] for layer in range(len(config.routed_blocks))]


def get_stack(params: dict[str, Any], stack: Stack) -> dict[str, Any]:
    """The parameters of the layers of a stack, out of a model's."""
    run, block = stack.path
    return params[run][block]


def set_stack(params: dict[str, Any], stack: Stack, new: dict[str, Any]) -> dict[str, Any]:
    """A model's parameters with others for the layers of a stack."""
    run, block = stack.path
    return params | {run: params[run] | {block: new}}


def find_stack(path: Sequence[str]) -> Path:
    """The path of the stack that a parameter is in; empty for one outside the layers."""
    inside = path[0].startswith(RUN) or tuple(path[:2]) == (NEXT_TOKENS, NEXT_BLOCK)
    return tuple(path[:2]) if inside else ()


def leave_out_next_tokens(
    config: ModelConfig, params: dict[str, Any], bias_LE: jax.Array | None
) -> tuple[ModelConfig, dict[str, Any], jax.Array | None]:
    """A model, its parameters and its selection bias without the modules that predict further
    tokens.
    """
    if not config.next_tokens:
        return config, params, bias_LE
    params = {name: x for name, x in params.items() if name != NEXT_TOKENS}
    bias_LE = None if bias_LE is None else bias_LE[: sum(config.routed_layers)]
    return replace(config, next_tokens=0), params, bias_LE


def name_run(number: int) -> str:
    """What the parameters of a run are called."""
    return f"{RUN}{number}"


def name_block(place: int) -> str:
    """What the parameters of the layers at one place of a unit are called."""
    return f"{BLOCK}{place}"
