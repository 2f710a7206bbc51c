"""Tensors on disk become arrays on devices: each device is given its own part alone."""

from functools import partial
from typing import Any

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

EXPONENTS: dict[int, tuple[type, Any]]
EXPONENTS = {2: (np.uint16, np.uint16(0x7F80)), 4: (np.uint32, np.uint32(0x7F800000))}
"""By the bytes of a number: bits as whole numbers, and those of the exponent."""
PART = 1 << 16
"""Numbers that are looked at together."""


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
) -> tuple[dict[ArrayPath, jax.Array], list[str]]:
    """All arrays of a model as ``like`` has them, and the names of the tensors with numbers that
    are not finite. The host never holds more than the experts of one layer.
    """
    arrays: dict[ArrayPath, jax.Array] = {}
    spoilt: dict[str, None] = {}
    total = sum(tensors[name].nbytes for entry in entries for name in entry.names)
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading", delay=3) as progress:
        for entry in entries:
            sources = [tensors[name] for name in entry.names]
            for part, path in enumerate(entry.paths):
                whole = like[path]
                if entry.index is None:
                    get = partial(_read_part, spoilt, entry, part, sources, config, whole)
                    arrays[path] = place(whole, get)
                    continue
                layer = take_layer(whole)
                get = partial(_read_part, spoilt, entry, part, sources, config, layer)
                one = partial(_read_as_one, get)
                arrays[path] = place_rows(arrays.get(path), whole, entry.index, 1, one)
            progress.update(sum(source.nbytes for source in sources))
    return arrays, list(spoilt)


def _read_as_one(get: Get, index: tuple[slice, ...]) -> np.ndarray:
    """A layer's part as one entry of a stack."""
    return get(index[1:])[None]


def _read_part(
    spoilt: dict[str, None],
    entry: Entry,
    part: int,
    sources: list[Tensor],
    config: ModelConfig,
    like: jax.ShapeDtypeStruct,
    index: tuple[slice, ...],
) -> np.ndarray:
    """What lies at ``index`` of one array, in one layer; of experts only those in it are read. The
    names of tensors that are not finite there are added to ``spoilt``.
    """
    if not entry.rule.is_per_expert:
        array = entry.rule.read(read_tensor(sources[0]), part, config)[index].astype(like.dtype)
        if not is_finite(array):
            spoilt[sources[0].name] = None
        return array
    experts = sources[index[0]]
    sizes = [len(range(size)[s]) for s, size in zip(index[1:], like.shape[1:], strict=True)]
    array = np.empty((len(experts), *sizes), like.dtype)
    for number, expert in enumerate(experts):
        array[number] = entry.rule.read(read_tensor(expert), part, config)[index[1:]]
        if not is_finite(array[number]):
            spoilt[expert.name] = None
    return array


def is_finite(array: np.ndarray) -> bool:
    """Whether all numbers of an array (float32 or bfloat16) are finite: none has all bits of the
    exponent. It is looked at in parts that fit a processor's cache.
    """
    kind, exponent = EXPONENTS[array.dtype.itemsize]
    bits: np.ndarray = array.ravel("K").view(kind)  # no copy: it lies in one piece
    parts = (bits[i : i + PART] for i in range(0, bits.size, PART))
    return all((part & exponent).max() != exponent for part in parts)
