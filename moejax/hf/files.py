"""The files of a checkpoint: what is in them, without trusting them. Only safetensors are read, by
names in the directory, where links are followed; nothing in a checkpoint is ever executed.
"""

import json
import math
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
from moejax.config.json_files import MOST_BYTES, MOST_TABLE_BYTES

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The types of weights that are read, by the name on disk."""


@dataclass(frozen=True)
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
        return math.prod(self.shape) * int(self.kind.lstrip("BF")) // 8


def read_json(file: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """A JSON object. Raises ``CheckpointError`` if there is none."""
    try:
        found = json_files.read_json(file, most)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is not a JSON object.")
    return found


def open_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, from the heads of its files.

    Raises ``CheckpointError`` for anything that is not a whole checkpoint of safetensors.
    """
    if not directory.is_dir():
        raise CheckpointError(f"there is no directory {directory}.")
    files, listed = _find_files(directory)
    found: dict[str, Tensor] = {}
    for file in files:
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


def _find_files(directory: Path) -> tuple[list[Path], dict[str, Path]]:
    """The files to read, and where the index says that each tensor is."""
    index, single = directory / INDEX, directory / SINGLE
    if not index.is_file():
        if single.is_file():
            return [_locate_inside(directory, SINGLE)], {}
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


def _read_head(file: Path) -> list[Tensor]:
    """The tensors of a file."""
    try:
        with safe_open(file, "np"):  # checks the head, and its places against the file's size
            pass
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            head = json.loads(opened.read(length), object_pairs_hook=lambda pairs: pairs)
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{file} is damaged, or no safetensors file: {error}.") from error
    name, count = Counter(name for name, _ in head).most_common(1)[0]
    if count > 1:
        raise CheckpointError(f"{file.name} has {name} twice.")
    tensors = []
    for name, pairs in head:
        if name == "__metadata__":
            continue
        about = dict(pairs)
        begin, kind = 8 + length + about["data_offsets"][0], about["dtype"]
        if kind not in TYPES:
            raise CheckpointError(
                f"{name} in {file.name} is of type {kind}: only {', '.join(TYPES)} are read."
                f" Convert quantised weights to bfloat16 first."
            )
        tensors.append(Tensor(name, file, tuple(about["shape"]), kind, begin))
    return tensors


def read_tensor(tensor: Tensor) -> np.ndarray:
    """A tensor as it lies in its file, mapped into memory: what is not looked at is not read, and
    what was read leaves memory with the array.
    """
    kind = TYPES[tensor.kind]
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    if not math.prod(tensor.shape):
        return np.empty(tensor.shape, dtype)
    return np.memmap(tensor.file, dtype, "r", tensor.offset, tensor.shape)
