"""The files of a checkpoint: what is in them, without trusting them. Only safetensors are read, by
names in the directory, where links are followed; nothing in a checkpoint is ever executed.
"""

import math
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from moejax.config import json_files
from moejax.config.checks import shorten
from moejax.config.errors import CheckpointError
from moejax.config.json_files import MEBIBYTE, MOST_BYTES, MOST_TABLE_BYTES, open_regular

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHTS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The types of weights that are numbers, by the name on disk."""
CODES = {"F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu"}
CODES |= {"U8": "uint8", "I32": "int32", "I64": "int64"}
"""Those of the parts of quantised weights."""
TYPES = {kind: np.dtype(getattr(ml_dtypes, name, name)) for kind, name in (WEIGHTS | CODES).items()}
MOST_HEAD_BYTES = 32 * MEBIBYTE
"""Of a file's head: a quarter of a million tensors."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor on disk."""

    name: str
    file: Path
    shape: tuple[int, ...]
    kind: str
    """Its type, as on disk."""
    offset: int
    """Where it begins in the file, in bytes."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * TYPES[self.kind].itemsize


def read_json(file: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """A JSON object. Raises ``CheckpointError`` if there is none."""
    try:
        found = json_files.read_json(file, most)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is not a JSON object.")
    return found


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a checkpoint in Hugging Face's format, whole or not."""
    file = path / "config.json"
    return file.is_file() and "model_type" in read_json(file)


def open_tensors(files: list[Path], listed: dict[str, Path], wanted: int) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, from the heads of what ``find_files`` found. ``wanted``:
    about how many there should be; a head that is far too long for these is not read.

    Raises ``CheckpointError`` for anything that is not a whole checkpoint of safetensors.
    """
    found: dict[str, Tensor] = {}
    most = min(MOST_HEAD_BYTES, MOST_BYTES + 1024 * wanted)
    for file in files:
        _check_head(file, most)
        for tensor in _read_head(file):
            if tensor.name in found:
                raise CheckpointError(
                    f"{tensor.name} is in {found[tensor.name].file.name} and in {file.name}: a"
                    f" tensor must be there once."
                )
            found[tensor.name] = tensor
    for name, file in listed.items():
        if name not in found or found[name].file != file:
            raise CheckpointError(f"{INDEX} says that {name} is in {file.name}, but it is not.")
    unlisted = sorted(set(found) - set(listed)) if listed else []
    if unlisted:
        raise CheckpointError(
            f"{found[unlisted[0]].file.name} has {unlisted[0]}, which {INDEX} does not list."
        )
    return found


def find_files(directory: Path) -> tuple[list[Path], dict[str, Path]]:
    """The files to read, and where the index says that each tensor is. Raises ``CheckpointError``
    if they are not all there.
    """
    if not directory.is_dir():
        raise CheckpointError(f"there is no directory {directory}.")
    index, single = directory / INDEX, directory / SINGLE
    if single.is_file() and not _lists_single(index):
        if index.exists():
            print(f"reading {single}: {INDEX} beside it is of other files", file=sys.stderr)
        return [single], {}
    if not index.is_file():
        pickles = sorted(p.name for p in directory.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
        reason = f"there is neither {SINGLE} nor {INDEX} in {directory}."
        if pickles:
            reason += (
                f" {pickles[0]} is a pickle, which may run any program when it is opened: convert"
                f" it to safetensors where you trust it (save_pretrained does so)."
            )
        raise CheckpointError(reason)
    mapping = read_json(index, MOST_TABLE_BYTES).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{index} has no weight_map.")
    files = {}
    for name in mapping.values():
        if name not in files:
            files[name] = _locate_inside(directory, name)
    return list(files.values()), {tensor: files[name] for tensor, name in mapping.items()}


def _lists_single(index: Path) -> bool:
    """Whether ``model.safetensors`` is a file of the index. If it is not, the index is of an older
    state in shards, and the single file counts, as in transformers.
    """
    try:
        mapping = read_json(index, MOST_TABLE_BYTES).get("weight_map")
    except CheckpointError:
        return False
    return isinstance(mapping, dict) and SINGLE in mapping.values()


def _locate_inside(directory: Path, name: Any) -> Path:
    """A file of the directory by its name, which must not lead out of it."""
    plain = isinstance(name, str) and name == Path(name).name and name.endswith(".safetensors")
    if not plain:
        raise CheckpointError(
            f"{INDEX} names the file {shorten(name)}: only safetensors files in the same directory"
            f" are read."
        )
    if not (directory / name).is_file():
        raise CheckpointError(f"{directory / name} is missing.")
    return directory / name


def _check_head(file: Path, most: int) -> None:
    """Before a head is read: is its length one of this model?"""
    try:
        with open_regular(file) as opened:
            length = int.from_bytes(opened.read(8), "little")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error
    if length > most:
        raise CheckpointError(
            f"{file} is damaged, or of another model: its head has {length:,} bytes, where the"
            f" tensors that config.json asks for take at most {most:,}."
        )


def _read_head(file: Path) -> list[Tensor]:
    """The tensors of a file. Bytes that none of them covers are one more, which nobody knows: where
    a tensor is missing in the head, the message is to name both.
    """
    uncovered: list[Tensor] = []
    try:
        try:
            with safe_open(file, "np"):  # checks the head, and its places against the file's size
                pass
        except SafetensorError:
            uncovered = _find_uncovered(file)
            if not uncovered:
                raise
        tensors = _parse_head(file)
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{file} is damaged, or no safetensors file: {error}.") from error
    counts = Counter(tensor.name for tensor in tensors)
    for tensor in tensors:
        if counts[tensor.name] > 1:
            raise CheckpointError(f"{file.name} has {tensor.name} twice.")
        if tensor.kind not in TYPES:
            raise CheckpointError(
                f"{tensor.name} in {file.name} is of type {tensor.kind}: only {', '.join(TYPES)}"
                f" are read. Convert the weights to bfloat16 first."
            )
    return tensors + uncovered


def _parse_head(file: Path) -> list[Tensor]:
    """The tensors that a file's head names. Raises ``ValueError`` if it is no such head."""
    with open_regular(file) as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(MOST_HEAD_BYTES, os.fstat(opened.fileno()).st_size - 8):
            raise ValueError("its head is longer than it may be")
        head = json_files.parse_json(opened.read(length), _shrink)
    tensors = []
    try:
        for name, about in head:
            if name != "__metadata__":
                kind, shape, (begin, end) = about
                tensors.append(Tensor(name, file, shape, kind, 8 + length + begin))
                if kind in TYPES and (begin < 0 or tensors[-1].nbytes != end - begin):
                    raise ValueError(f"{shorten(name)} has not the bytes of its shape")
    except (TypeError, KeyError) as error:
        raise ValueError(f"its head is no table of tensors: {error}") from error
    return tensors


def _shrink(pairs: list[tuple[str, Any]]) -> list | tuple:
    """What is said of a tensor, in little memory; of the whole head all pairs, as a name may be
    there twice.
    """
    about = dict(pairs) if len(pairs) == 3 else {}
    if isinstance(about.get("dtype"), str) and about.keys() == {"dtype", "shape", "data_offsets"}:
        return about["dtype"], tuple(about["shape"]), tuple(about["data_offsets"])
    return pairs


def _find_uncovered(file: Path) -> list[Tensor]:
    """The stretches of a file that no tensor covers; none if it is wrong in another way. Raises
    ``ValueError`` as ``_parse_head`` does.
    """
    found, after = [], "its head"
    with open_regular(file) as opened:
        end = 8 + int.from_bytes(opened.read(8), "little")
        size = os.fstat(opened.fileno()).st_size
    last = Tensor("", file, (), "U8", size)
    for tensor in (*sorted(_parse_head(file), key=lambda tensor: tensor.offset), last):
        gap = tensor.offset - end
        if gap < 0 or tensor is not last and tensor.kind not in TYPES:
            return []
        if gap:
            name = f"{gap:,} bytes of {file.name} after {after}, of no tensor"
            found.append(Tensor(name, file, (gap,), "U8", end))
        if tensor is not last:
            end, after = tensor.offset + tensor.nbytes, tensor.name
    return found


def read_tensor(tensor: Tensor) -> np.ndarray:
    """A tensor as it lies in its file, mapped into memory: what is not looked at is not read, and
    what was read leaves memory with the array.
    """
    dtype = TYPES[tensor.kind]
    if not math.prod(tensor.shape):
        return np.empty(tensor.shape, dtype)
    return np.memmap(tensor.file, dtype, "r", tensor.offset, tensor.shape)
