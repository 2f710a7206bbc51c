"""The parameters that lie on one device, and what the optimizer keeps for them."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from moejax.config.config import Config
from moejax.models.adapters import adapter_shapes
from moejax.models.decoder import DecoderLM
from moejax.models.layer_runs import find_stack
from moejax.runtime import device_mesh, partition
from moejax.runtime.partition import TOKENS, parameter_spec


@dataclass(frozen=True)
class Parameter:
    """A parameter, layers and experts stacked, on one device of the mesh in use."""

    name: str
    size: float
    """How many of its numbers lie on this device."""
    gathered: float
    """How many of its numbers the products on this device need; where it is not spread, the same.
    """
    layer: tuple[str, ...]
    """The run of layers that it belongs to; empty for parameters outside the layers."""
    layers: int
    """The number of these layers."""
    copies: int
    """How many devices that see other tokens hold the same numbers."""


def parameter_shapes(config: Config, vocab_size: int) -> dict:
    """The shapes of a decoder's parameters, before a mesh cuts them. They are the same in every
    form of attention, so a kernel of devices that are not here does no harm.
    """
    attention = replace(config.model.attention, form="auto")
    model = DecoderLM(replace(config.model, attention=attention), vocab_size)
    length = config.data.sequence_length
    tokens = jax.ShapeDtypeStruct((config.sequences_per_group, length), jnp.int32)
    batch = {"inputs": tokens, "segments": tokens, "positions": tokens}
    return jax.eval_shape(
        lambda key, b: model.init(key, b, True)["params"], jax.random.key(0), batch
    )


def trained_shapes(config: Config, shapes: dict) -> dict:
    """The shapes of what is trained, from those of all parameters: these, or the adapters."""
    lora = config.run.lora
    return shapes if lora.rank is None else adapter_shapes(shapes, lora)


def local_parameters(
    config: Config, params: dict, grid: AbstractMesh, frozen: bool = False
) -> list[Parameter]:
    """What a device of the mesh holds of each parameter; ``params`` are their shapes. Those that
    are ``frozen`` are spread by FSDP alone.
    """
    sizes, spread = dict(grid.shape), config.mesh.fsdp if frozen else config.mesh.spreads

    def count_parts(
        name: str, leaf: Any, fsdp: bool, of: tuple[str, ...] = device_mesh.AXES
    ) -> int:
        spec = partition.fit_spec(parameter_spec(name, fsdp), leaf.shape, sizes["model"])
        axes = [a for axis in spec for a in _several(axis)]
        return math.prod(sizes[axis] for axis in axes if axis in of)

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> Parameter:
        names = [key.key for key in path]
        adapter = names[-1] in partition.ADAPTER
        name, layer = "/".join(names[-2:]) if adapter else names[-1], find_stack(names)
        here = leaf.size / count_parts(name, leaf, spread)
        whole = leaf.size / count_parts(name, leaf, False)
        alike = math.prod(sizes[axis] for axis in TOKENS)
        copies = alike // count_parts(name, leaf, spread, TOKENS)
        return Parameter(name, here, whole, layer, leaf.shape[0] if layer else 0, copies)

    found = jax.tree_util.tree_map_with_path(place, params)
    return jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, Parameter))


def _several(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axis,) if isinstance(axis, str) else axis or ()


def optimizer_bytes(config: Config, parameters: list[Parameter]) -> dict[str, float]:
    """Bytes that the optimizer keeps on a device for what is trained: AdamW keeps two moments, Muon
    one, in the type in which they are stored.
    """
    found, size = {"muon": 0.0, "adamw": 0.0}, jnp.dtype(config.optim.moments).itemsize
    for p in parameters:
        muon = config.optim.choose_transform(p.name) == "muon"
        found["muon" if muon else "adamw"] += size * p.size * (1 if muon else 2)
    return {name: size for name, size in found.items() if size}


def largest_layer(parameters: list[Parameter], field: str) -> float:
    """The size of the largest layer, in numbers of these parameters."""
    of_layer: dict[tuple[str, ...], float] = {}
    for p in parameters:
        of_layer[p.layer] = of_layer.get(p.layer, 0.0) + getattr(p, field) / p.layers
    return max(of_layer.values(), default=0.0)
