"""Tensors on disk become arrays on devices: each device is given its own part alone."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, SingleDeviceSharding
from tqdm import tqdm

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.hf.codecs import Source
from moejax.hf.files import Tensor, read_tensor
from moejax.hf.tensors import ArrayPath, Entry, Rule
from moejax.moe.placing import Like, place, place_block, read_as
from moejax.moe.quantised import Quantised
from moejax.runtime import partition
from moejax.runtime.place_arrays import Get, is_whole, take_layer

EXPONENTS: dict[int, tuple[type, Any]]
EXPONENTS = {2: (np.uint16, np.uint16(0x7F80)), 4: (np.uint32, np.uint32(0x7F800000))}
"""By the bytes of a number: bits as whole numbers, and those of the exponent."""
BLOCK_BYTES = 16 << 20
"""About how much of an array is on the host at once: less than an expert of the largest models."""
PART = 1 << 16
"""Numbers that are looked at together."""
Piece = tuple[Source, int | None]
"""A tensor, or the matrix of an expert in a tensor that has those of all."""


def lay_out(
    like: dict[ArrayPath, Like], mesh: Mesh | None, layout: MeshConfig
) -> dict[ArrayPath, Like]:
    """Arrays with the shardings of parameters; without a mesh, all on the first device."""
    tree = unflatten_dict(like)
    if mesh is None:
        shardings = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), tree)
    else:
        shardings = partition.tree_shardings(mesh, tree, layout.fsdp)
    laid = flatten_dict(partition.set_shardings(tree, shardings))
    return {path: laid[path] for path in like}


def read_arrays(
    entries: list[Entry],
    like: dict[ArrayPath, Like],
    sources: dict[str, Source],
    config: ModelConfig,
) -> tuple[dict[ArrayPath, Any], list[str]]:
    """All arrays of a model as ``like`` has them, and the names of the tensors with numbers that
    are not finite. The host never holds more than the experts of one layer; where a device has all
    of them, not more than about ``BLOCK_BYTES`` of these, or one expert.
    """
    arrays: dict[ArrayPath, Any] = {}
    spoilt: dict[str, None] = {}
    total = sum(sources[name].nbytes for entry in entries for name in entry.names)
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading", delay=3) as progress:
        for entry in entries:
            pieces = list_pieces(entry, sources)
            for part, path in enumerate(entry.paths):
                read = partial(read_part, spoilt, entry, part, config)
                arrays[path] = _place_entry(arrays.get(path), like[path], entry, pieces, read)
            progress.update(sum(sources[name].nbytes for name in entry.names))
    return arrays, list(spoilt)


def list_pieces(entry: Entry, sources: dict[str, Source]) -> list[Piece]:
    """What an entry is read from: of a bank a piece for each expert."""
    if entry.is_bank and not entry.rule.is_per_expert:
        return [(sources[entry.names[0]], expert) for expert in range(entry.shape[0])]
    return [(sources[name], None) for name in entry.names]


def _place_entry(
    array: Any,
    like: Like,
    entry: Entry,
    pieces: list[Piece],
    read: Callable[[list[Piece], jax.ShapeDtypeStruct, tuple[slice, ...]], np.ndarray],
) -> Any:
    """An array with what an entry has of it, some experts or rows after the others."""
    whole = read_as(like)
    if entry.index is None:
        return _place_rows(array, like, entry, partial(read, pieces, whole))
    layer = take_layer(whole)

    def read_stacked(some: list[Piece], index: tuple[slice, ...]) -> np.ndarray:
        return read(some, layer, index[1:])[None]

    if not entry.is_bank:
        return _place_rows(array, like, entry, partial(read_stacked, pieces))
    if not is_whole(whole, 1):
        get = partial(read_stacked, pieces)
        return place_block(array, like, (entry.index,), (1,), get)
    expert_bytes = layer.size // len(pieces) * layer.dtype.itemsize
    step = max(1, BLOCK_BYTES // max(1, expert_bytes))
    for first in range(0, len(pieces), step):
        some = pieces[first : first + step]
        get = partial(read_stacked, some)
        array = place_block(array, like, (entry.index, first), (1, len(some)), get)
    assert array is not None  # as there are experts
    return array


def _place_rows(array: Any, like: Like, entry: Entry, get: Get) -> Any:
    """An array with what an entry has of it, which is no bank: some of the rows on disk after the
    others.
    """
    whole = read_as(like)
    lead = () if entry.index is None else (entry.index,)
    axis = len(whole.shape) - 1 if entry.rule.transpose else len(lead)
    rows = whole.shape[axis]
    row_bytes = math.prod(whole.shape[len(lead) :]) // rows * whole.dtype.itemsize
    step = max(1, BLOCK_BYTES // row_bytes)
    target: Any = like
    summed: int | None = None
    if isinstance(like, Quantised):
        target, summed = like.codes, like.ndim + like.axis
    if step >= rows or axis == summed or not all(is_whole(target, a) for a in range(axis + 1)):
        return place_block(array, like, lead, (1,), get) if lead else place(like, get)

    def read_moved(first: int, index: tuple[slice, ...]) -> np.ndarray:
        moved = slice(index[axis].start + first, index[axis].stop + first)
        return get((*index[:axis], moved, *index[axis + 1 :]))

    for first in range(0, rows, step):
        start, sizes = [0] * (axis + 1), list(whole.shape[: axis + 1])
        start[: len(lead)], sizes[: len(lead)] = lead, [1] * len(lead)
        start[axis], sizes[axis] = first, min(step, rows - first)
        block = partial(read_moved, first)
        array = place_block(array, like, tuple(start), tuple(sizes), block)
    assert array is not None  # as there are rows
    return array


def read_part(
    spoilt: dict[str, None],
    entry: Entry,
    part: int,
    config: ModelConfig,
    pieces: list[Piece],
    like: jax.ShapeDtypeStruct,
    index: tuple[slice, ...],
) -> np.ndarray:
    """What lies at ``index`` of one array, in one layer, or in the experts of ``pieces``; only the
    experts in it are read. The names of tensors that are not finite there are added to ``spoilt``.
    """
    if not entry.is_bank:
        array = _read_piece(pieces[0], entry.rule, part, config, index, like.dtype)
        array = array.astype(like.dtype, copy=False)
        if not is_finite(array):
            spoilt[pieces[0][0].name] = None
        return array
    experts = pieces[index[0]]
    sizes = [len(range(size)[s]) for s, size in zip(index[1:], like.shape[1:], strict=True)]
    array = np.empty((len(experts), *sizes), like.dtype)
    for number, expert in enumerate(experts):
        array[number] = _read_piece(expert, entry.rule, part, config, index[1:], like.dtype)
        if not is_finite(array[number]):
            spoilt[expert[0].name] = None
    return array


def _read_piece(
    piece: Piece,
    rule: Rule,
    part: int,
    config: ModelConfig,
    index: tuple[slice, ...],
    dtype: np.dtype,
) -> np.ndarray:
    """What lies at ``index`` of a matrix (or vector) of ours. It is of ``dtype`` if it had codes,
    of which only the rows that are wanted are decoded.
    """
    source, expert = piece
    if isinstance(source, Tensor):
        whole = read_tensor(source)
        return rule.read(whole if expert is None else whole[expert], part, config, index)
    rows, width = source.stored
    if rule.transpose != source.codec.swapped:  # a row on disk is a column of ours
        columns = rule.list_columns(rows, part, config)[index[1]]
        return source.read(expert, columns, dtype).T[index[0]]
    columns = rule.list_columns(width, part, config)[index[1]]
    return source.read(expert, np.arange(rows)[index[0]], dtype)[:, columns]


def is_finite(array: np.ndarray) -> bool:
    """Whether all numbers of an array (float32 or bfloat16) are finite: none has all bits of the
    exponent. It is looked at in parts that fit a processor's cache.
    """
    kind, exponent = EXPONENTS[array.dtype.itemsize]
    bits: np.ndarray = array.ravel("K").view(kind)  # no copy: it lies in one piece
    parts = (bits[i : i + PART] for i in range(0, bits.size, PART))
    return all((part & exponent).max() != exponent for part in parts)
