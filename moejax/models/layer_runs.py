"""How a model's layers are cut into runs, and where their parameters lie.

A run is a loop over a repeated unit of layers. The parameters of the layers at one place of a unit
are stacked over its repeats: ``layers_0/block_1`` has those of the second layer of each unit of the
first run. The modules that predict further tokens (``next_tokens``) are a stack of their own, above
the last layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax

from moejax.config.model import ModelConfig

Path = tuple[str, ...]
RUN, BLOCK = "layers_", "block_"
NEXT_TOKENS, NEXT_BLOCK = "next_tokens", "block"
"""Where the modules lie that predict further tokens, and the block of each."""


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
    """All layers, and the blocks of the modules above them, by the stacks in which their parameters
    lie.
    """
    stacks, layer, routed_layer = [], 0, 0
    for number, (unit, repeats) in enumerate(cut_layers(config)):
        next_layer, next_routed = layer + repeats * len(unit), routed_layer + repeats * sum(unit)
        for place, routed in enumerate(unit):
            path = (name_run(number), name_block(place))
            mine = range(routed_layer + sum(unit[:place]), next_routed, sum(unit) or 1)
            layers = range(layer + place, next_layer, len(unit))
            stacks.append(Stack(path, layers, mine if routed else None))
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
    params = {name: x for name, x in params.items() if name != NEXT_TOKENS}
    bias_LE = None if bias_LE is None else bias_LE[: sum(config.routed_layers)]
    return replace(config, next_tokens=0), params, bias_LE


def name_run(number: int) -> str:
    """What the parameters of a run are called."""
    return f"{RUN}{number}"


def name_block(place: int) -> str:
    """What the parameters of the layers at one place of a unit are called."""
    return f"{BLOCK}{place}"
