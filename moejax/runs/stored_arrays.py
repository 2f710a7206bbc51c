"""The arrays of a checkpoint, read part by part: for whoever wants a model and not a train state.

Orbax restores whole arrays, several at once, and so needs twice the memory of a large model. Here
TensorStore, which Orbax writes with, is asked for a part at a time.
"""

import json
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

from moejax.runtime.place_arrays import is_whole, place, place_rows

ArrayPath = tuple[str, ...]
"""Where an array stands in the tree that was saved."""
PART_BYTES = 64 << 20
"""About the size of a part; large arrays are stored in parts of at most this size."""
FILE_BYTES = 128 << 20
SMALLEST_ROW = 1 << 20
"""Entries of the first dimension that are smaller than this share a part."""


def save_in_parts(tree: Any) -> ocp.args.PyTreeSave:
    """What Orbax is asked to save a tree: in parts that can be read alone, a layer of a stack in
    parts of its own, and in several files, as what one file is to have waits in memory.
    """

    def choose(array: jax.Array) -> ocp.SaveArgs:
        alone = array.ndim > 1 and array.nbytes >= SMALLEST_ROW * array.shape[0]
        return ocp.SaveArgs(chunk_byte_size=PART_BYTES, shard_axes=(0,) if alone else ())

    return ocp.args.PyTreeSave(
        tree, save_args=jax.tree.map(choose, tree), ocdbt_target_data_file_size=FILE_BYTES
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
    stores = _open_arrays(directory, list_arrays(directory))
    return {path: store.dtype.numpy_dtype for path, store in stores.items()}


def read_tree(directory: Path, like: dict[str, Any]) -> dict[str, Any]:
    """Arrays from a directory that Orbax wrote: those of ``like``, a tree of
    ``jax.ShapeDtypeStruct`` with shardings, in its types. Beside them the host holds one part of
    one array.

    Raises ``ValueError`` if an array is missing or of another shape, and what TensorStore raises
    for damaged files.
    """
    wanted = flatten_dict(like)
    there = list_arrays(directory)
    if missing := [".".join(path) for path in wanted if path not in there]:
        raise ValueError(f"{missing[0]} is missing")
    stores = _open_arrays(directory, list(wanted))
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


def _open_arrays(directory: Path, paths: list[ArrayPath]) -> dict[ArrayPath, Any]:
    """Arrays, opened but not read."""
    driver = "zarr3" if _read_metadata(directory).get("use_zarr3") else "zarr"
    base = {"driver": "file", "path": f"{directory.absolute()}/"}
    futures = {}
    for path in paths:
        place = {"driver": "ocdbt", "base": base, "path": ".".join(path) + "/"}
        futures[path] = ts.open({"driver": driver, "kvstore": place}, open=True)
    return {path: future.result() for path, future in futures.items()}


def _count_bytes(store: Any, numbers: int) -> int:
    return store.dtype.numpy_dtype.itemsize * numbers


def _read_array(store: Any, like: jax.ShapeDtypeStruct, progress: tqdm) -> jax.Array:
    def read(start: int, index: tuple[slice, ...]) -> np.ndarray:
        if index:
            index = (slice(index[0].start + start, index[0].stop + start), *index[1:])
        return store[index].read().result().astype(like.dtype, copy=False)

    if not like.shape or not is_whole(like):
        array = jax.block_until_ready(place(like, partial(read, 0)))
        progress.update(_count_bytes(store, like.size))
        return array
    array = None
    row = like.size // like.shape[0]
    for start, count in _cut_rows(store, like.shape[0], _count_bytes(store, row)):
        array = place_rows(array, like, start, count, partial(read, start))
        progress.update(_count_bytes(store, row * count))
    assert array is not None  # as there are rows
    return array


def _cut_rows(store: Any, rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Where each part begins, and how many entries of the first dimension it has: whole stored
    chunks, so that none is read twice.
    """
    stored = store.chunk_layout.read_chunk.shape[0]
    step = stored * max(1, PART_BYTES // (stored * row_bytes))
    for start in range(0, rows, step):
        yield start, min(step, rows - start)
