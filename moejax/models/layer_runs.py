"""How a model's layers are cut into runs, and where their parameters lie.

A run is a loop over a repeated unit of layers. The parameters of the layers at one place of a unit
are stacked over its repeats: ``layers_0/block_1`` has those of the second layer of each unit of the
first run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from moejax.config.model import ModelConfig

Path = tuple[str, ...]
RUN, BLOCK = "layers_", "block_"


class Run(NamedTuple):
    """Layers that one loop runs."""

    unit: tuple[bool, ...]
    """Which layers of the repeated unit are routed."""
    repeats: int


@dataclass(frozen=True)
class Stack:
    """The layers at one place of a run's unit, with their parameters stacked."""

    path: Path
    """Where these are in the parameters of the model."""
    layers: range
    """The layers, from 0 at the bottom of the model."""
    routed: range | None
    """Which of the routed layers they are; None for dense layers."""


def count_repeats(config: ModelConfig) -> dict[str, int]:
    """How often each run repeats its unit: the first ``dense`` layers; a ``unit`` with a routed
    layer at its end (of a dense model: one layer); the ``rest``, dense layers above.
    """
    first = config.moe.first_dense if config.moe.every else 0
    units, rest = divmod(config.num_layers - first, config.moe.every or 1)
    return {"dense": first, "unit": units, "rest": rest}


def with_repeats(config: ModelConfig, repeats: dict[str, int]) -> ModelConfig:
    """The model with so many repeats of each run: the inverse of ``count_repeats``."""
    moe = config.moe
    layers = repeats["dense"] + repeats["unit"] * (moe.every or 1) + repeats["rest"]
    first = repeats["dense"] if moe.every else 0
    attention = replace(config.attention, kinds=config.attention.kinds[:layers])
    moe = replace(moe, first_dense=first)
    return replace(config, num_layers=layers, attention=attention, moe=moe)


def cut_layers(config: ModelConfig) -> list[Run]:
    """Cut the layers into runs.

    With every second layer of 7 routed after 2 dense ones: D D | D R, D R | D.
    """
    repeats = count_repeats(config)
    first, period = repeats["dense"], config.moe.every or 1
    units = {
        "dense": (False,),
        "unit": config.routed_layers[first : first + period],
        "rest": (False,),
    }
    return [Run(units[name], number) for name, number in repeats.items() if number]


def stack_layers(config: ModelConfig) -> list[Stack]:
    """All layers, by the stacks in which their parameters lie."""
    stacks, layer, routed_layer = [], 0, 0
    for number, (unit, repeats) in enumerate(cut_layers(config)):
        next_layer, next_routed = layer + repeats * len(unit), routed_layer + repeats * sum(unit)
        for place, routed in enumerate(unit):
            path = (name_run(number), name_block(place))
            mine = range(routed_layer + sum(unit[:place]), next_routed, sum(unit) or 1)
            layers = range(layer + place, next_layer, len(unit))
            stacks.append(Stack(path, layers, mine if routed else None))
        layer, routed_layer = next_layer, next_routed
    return stacks


def locate_layers(config: ModelConfig) -> list[tuple[Path, int]]:
    """Of each layer, the path of its stack, and its number there."""
    found = {
        layer: (stack.path, number)
        for stack in stack_layers(config)
        for number, layer in enumerate(stack.layers)
    }
    return [found[layer] for layer in range(config.num_layers)]


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
    return tuple(path[:2]) if path[0].startswith(RUN) else ()


def name_run(number: int) -> str:
    """What the parameters of a run are called."""
    return f"{RUN}{number}"


def name_block(place: int) -> str:
    """What the parameters of the layers at one place of a unit are called."""
    return f"{BLOCK}{place}"
