"""Tensors on disk become arrays on devices: each device is given its own part alone."""

from functools import partial

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, SingleDeviceSharding
from tqdm import tqdm

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.hf.files import Tensor, read_tensor
from moejax.hf.tensors import ArrayPath, Entry
from moejax.runtime import partition
from moejax.runtime.place_arrays import Get, place, place_rows, take_layer


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
                if entry.index is None:
                    get = partial(_read_part, entry, part, sources, config, whole)
                    arrays[path] = place(whole, get)
                    continue
                get = partial(_read_part, entry, part, sources, config, take_layer(whole))
                one = partial(_read_as_one, get)
                arrays[path] = place_rows(arrays.get(path), whole, entry.index, 1, one)
            progress.update(sum(source.nbytes for source in sources))
    return arrays


def _read_as_one(get: Get, index: tuple[slice, ...]) -> np.ndarray:
    """A layer's part as one entry of a stack."""
    return get(index[1:])[None]


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
