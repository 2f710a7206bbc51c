"""The arrays of a checkpoint, read part by part: for whoever wants a model and not a train state.

Orbax restores whole arrays, several at once, and so needs twice the memory of a large model. Here
TensorStore, which Orbax writes with, is asked for a part at a time.
"""

import itertools
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from moejax.moe.placing import Like, place, place_block, read_as
from moejax.moe.quantised import Quantised
from moejax.runtime.place_arrays import PART_BYTES, is_whole

ArrayPath = tuple[str, ...]
"""Where an array stands in the tree that was saved."""
FILE_BYTES = 128 << 20
SMALLEST_ROW = 1 << 20
"""Entries of the first dimension that are smaller than this share a part."""


def save_in_parts(tree: Any) -> ocp.args.PyTreeSave:
    """What Orbax is asked to save a tree: in parts that can be read alone, a layer of a stack in
    parts of its own, and in several files, as what one file is to have waits in memory.

    Of an array of one part that all devices hold, one device gives all: Orbax would else have each
    of them cut out a slice, by a program of its own.
    """

    def give(array: jax.Array) -> jax.Array:
        if jax.process_count() > 1 or not array.is_fully_replicated or array.nbytes > PART_BYTES:
            return array
        return array.addressable_data(0)

    def choose(array: jax.Array) -> ocp.SaveArgs:
        alone = array.ndim > 1 and array.nbytes >= SMALLEST_ROW * array.shape[0]
        return ocp.SaveArgs(chunk_byte_size=PART_BYTES, shard_axes=(0,) if alone else ())

    return ocp.args.PyTreeSave(
        jax.tree.map(give, tree),
        save_args=jax.tree.map(choose, tree),
        ocdbt_target_data_file_size=FILE_BYTES,
    )


def restore_like(like: Any) -> ocp.args.PyTreeRestore:
    """What Orbax is asked to restore: all that was saved, with the shapes, types and shardings of
    ``like``, a tree of ``jax.ShapeDtypeStruct``.
    """
    return ocp.args.PyTreeRestore(
        like, restore_args=ocp.checkpoint_utils.construct_restore_args(like)
    )


def read_types(directory: Path) -> dict[ArrayPath, np.dtype]:
    """The types of all arrays in a directory that Orbax wrote, by path."""
    stores = open_arrays(directory, list_arrays(directory))
    return {path: store.dtype.numpy_dtype for path, store in stores.items()}


def read_tree(directory: Path, like: dict[str, Any]) -> dict[str, Any]:
    """Arrays from a directory that Orbax wrote: those of ``like``, a tree of
    ``jax.ShapeDtypeStruct`` with shardings, in its types; where it has a ``Quantised`` of these,
    quantised. Beside them the host holds one part of one array.

    Raises ``ValueError`` if an array is missing or of another shape, and what TensorStore raises
    for damaged files.
    """
    wanted = flatten_dict(like)
    there = list_arrays(directory)
    if missing := [".".join(path) for path in wanted if path not in there]:
        raise ValueError(f"{missing[0]} is missing")
    stores = open_arrays(directory, list(wanted))
    for path, leaf in wanted.items():
        if tuple(stores[path].shape) != leaf.shape:
            shape = list(stores[path].shape)
            raise ValueError(f"{'.'.join(path)} is {shape} instead of {list(leaf.shape)}")
    arrays = {}
    total = sum(_count_bytes(stores[path], leaf.size) for path, leaf in wanted.items())
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading", delay=3) as progress:
        for path, leaf in wanted.items():
            progress.set_postfix_str(".".join(path), refresh=False)
            arrays[path] = _read_array(stores[path], leaf, progress)
    return unflatten_dict(arrays)


def list_arrays(directory: Path) -> list[ArrayPath]:
    """The paths of all arrays in a directory that Orbax wrote."""
    leaves = _read_metadata(directory)["tree_metadata"].values()
    return [tuple(str(key["key"]) for key in leaf["key_metadata"]) for leaf in leaves]


def _read_metadata(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "_METADATA").read_text(encoding="utf-8"))


def open_arrays(directory: Path, paths: list[ArrayPath]) -> dict[ArrayPath, Any]:
    """Arrays, opened but not read."""
    driver = "zarr3" if _read_metadata(directory).get("use_zarr3") else "zarr"
    base = {"driver": "file", "path": f"{directory.resolve()}/"}
    futures = {}
    for path in paths:
        place = {"driver": "ocdbt", "base": base, "path": ".".join(path) + "/"}
        futures[path] = ts.open({"driver": driver, "kvstore": place}, open=True)
    return {path: future.result() for path, future in futures.items()}


def _count_bytes(store: Any, numbers: int) -> int:
    return store.dtype.numpy_dtype.itemsize * numbers


def _read_array(store: Any, like: Like, progress: tqdm) -> Any:
    def read(start: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        moved = tuple(slice(s.start + n, s.stop + n) for s, n in zip(index, start, strict=True))
        return store[moved].read().result().astype(like.dtype, copy=False)

    array = None
    for start, sizes in _cut_blocks(store, like):
        if sizes == like.shape:
            array = jax.block_until_ready(place(like, partial(read, start)))
        else:
            array = place_block(array, like, start, sizes, partial(read, start))
        progress.update(_count_bytes(store, math.prod(sizes)))
    assert array is not None  # Orbax writes no array without numbers
    return array


def _cut_blocks(store: Any, like: Like) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Where each block begins, and its sizes: whole stored chunks, so that none is read twice, cut
    in at most two dimensions, which every device has whole; not in what is summed, where the array
    is to be quantised.
    """
    shape, chunk = like.shape, store.chunk_layout.read_chunk.shape
    sizes = list(shape)
    for axis in _choose_axes(shape, chunk, like):
        one = _count_bytes(store, math.prod(sizes) // sizes[axis])  # bytes of one entry of the axis
        sizes[axis] = min(shape[axis], chunk[axis] * max(1, PART_BYTES // (chunk[axis] * one)))
    ranges = [range(0, total, size) for total, size in zip(shape, sizes, strict=True)]
    for start in itertools.product(*ranges):
        ends = zip(start, sizes, shape, strict=True)
        yield start, tuple(min(size, total - first) for first, size, total in ends)


def _choose_axes(shape: tuple[int, ...], chunk: tuple[int, ...], like: Like) -> list[int]:
    """The first dimension, and the one in which the chunks are cut most."""
    summed = like.ndim + like.axis if isinstance(like, Quantised) else None
    read = read_as(like)
    whole = [axis for axis in range(len(shape)) if axis != summed and is_whole(read, axis)]
    inner = sorted((a for a in whole if a > 0), key=lambda a: chunk[a] / shape[a])
    return [axis for axis in whole if axis == 0] + inner[:1]
