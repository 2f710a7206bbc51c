"""Tensors on disk become arrays on devices: each device is given its own part alone."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from tqdm import tqdm

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.hf.files import Tensor, read_tensor
from moejax.hf.tensors import ArrayPath, Entry
from moejax.runtime import partition


def lay_out(
    like: dict[ArrayPath, jax.ShapeDtypeStruct], mesh: Mesh | None, layout: MeshConfig
) -> dict[ArrayPath, jax.ShapeDtypeStruct]:
    """Arrays with the shardings of parameters; without a mesh, all on the first device."""
    if mesh is None:
        shardings = dict.fromkeys(like, SingleDeviceSharding(jax.devices()[0]))
    else:
        tree = partition.tree_shardings(mesh, unflatten_dict(like), layout.fsdp)
        shardings = flatten_dict(tree)
    return {
        path: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=shardings[path])
        for path, array in like.items()
    }


def read_arrays(
    entries: list[Entry],
    like: dict[ArrayPath, jax.ShapeDtypeStruct],
    tensors: dict[str, Tensor],
    config: ModelConfig,
) -> dict[ArrayPath, jax.Array]:
    """All arrays of a model as ``like`` has them. The host never holds more than the experts of one
    layer.
    """
    arrays: dict[ArrayPath, jax.Array] = {}
    total = sum(tensors[name].nbytes for entry in entries for name in entry.names)
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading", delay=3) as progress:
        for entry in entries:
            sources = [tensors[name] for name in entry.names]
            for part, path in enumerate(entry.paths):
                whole = like[path]
                one = whole if entry.index is None else _take_layer(whole)
                array = _place(one, partial(_read_part, entry, part, sources, config, one))
                if entry.index is not None:
                    stack = arrays[path] if path in arrays else _make_zeros(whole)()
                    # Waited for: what is still on its way would add up on the host.
                    array = jax.block_until_ready(_set_layer(stack, array, entry.index))
                arrays[path] = array
            progress.update(sum(source.nbytes for source in sources))
    return arrays


def _take_layer(stack: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """One layer's part of an array."""
    sharding = stack.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype, sharding=sharding)


def _place(like: jax.ShapeDtypeStruct, get: Callable) -> jax.Array:
    """An array of which each device is given the part that it holds, and copies are read once."""
    parts: dict[tuple, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        key = tuple(range(size)[s] for s, size in zip(index, like.shape, strict=True))
        if key not in parts:
            parts[key] = np.ascontiguousarray(get(index))
        return parts[key]

    return jax.make_array_from_callback(like.shape, like.sharding, part)


def _read_part(
    entry: Entry,
    part: int,
    sources: list[Tensor],
    config: ModelConfig,
    like: jax.ShapeDtypeStruct,
    index: tuple[slice, ...],
) -> np.ndarray:
    """What lies at ``index`` of one array, in one layer; of experts only those in it are read."""
    if not entry.rule.is_per_expert:
        return entry.rule.read(read_tensor(sources[0]), part, config)[index].astype(like.dtype)
    experts = sources[index[0]]
    sizes = [len(range(size)[s]) for s, size in zip(index[1:], like.shape[1:], strict=True)]
    array = np.empty((len(experts), *sizes), like.dtype)
    for number, expert in enumerate(experts):
        array[number] = entry.rule.read(read_tensor(expert), part, config)[index[1:]]
    return array


@cache
def _make_zeros(like: jax.ShapeDtypeStruct) -> Callable:
    return jax.jit(lambda: jnp.zeros(like.shape, like.dtype), out_shardings=like.sharding)


@partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer: jax.Array, index: int) -> jax.Array:
    """``stack`` with ``layer`` at ``index``, in the same memory."""
    return jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)
