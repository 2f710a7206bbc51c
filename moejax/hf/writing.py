"""Models into Hugging Face's format: shards of safetensors, an index, config.json, a tokenizer."""

import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tqdm import tqdm

from moejax.config.checks import check
from moejax.config.errors import CheckpointError
from moejax.config.model import ModelConfig
from moejax.hf import accounts
from moejax.hf.accounts import BIAS
from moejax.hf.codecs import Codec
from moejax.hf.configs import write_config
from moejax.hf.files import INDEX, SINGLE
from moejax.hf.quantise import choose_codec, count_bytes, list_plain, write_tensor
from moejax.hf.tensors import ArrayPath, Entry
from moejax.models.layer_runs import leave_out_next_tokens
from moejax.moe.quantise_params import check_not_quantised
from moejax.runtime.atomic_files import write_json
from moejax.runtime.new_folders import lock_folder, make_folders, remove_empty
from moejax.runtime.stop import last_act
from moejax.runtime.writing import writing_to

OTHER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
"""Files of a checkpoint that are copied as they are."""
UNFINISHED = ".unfinished"
"""A folder in a new directory, with all of it, until it is whole."""
SHARD_BYTES = 5 * 10**9
DTYPES = ("auto", "float32", "bfloat16")


def save(
    directory: str | Path,
    config: ModelConfig,
    params: dict,
    bias_LE: jax.Array | None = None,
    *,
    hf: dict[str, Any] | None = None,
    family: str | None = None,
    dtype: str = "auto",
    files_from: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    more: dict[str, Any] | None = None,
    quantise: str | None = None,
    next_tokens: bool = True,
) -> str:
    """Write a model to a new directory that Hugging Face's tools and serving engines read; returns
    the family that it was written as.

    ``hf`` is the ``config.json`` that it was read from, if it was; ``more`` are further fields of
    the new one. ``family`` names another family than the first that can hold the model. ``dtype``
    ``auto`` keeps the parameters' types; the selection bias is float32 always. ``files_from`` is a
    directory with the tokenizer. No shard is larger than ``shard_bytes``, unless a tensor is.
    ``quantise`` names a codec (fp8, mxfp4, int4) in which the weights are written that it is for.
    Without ``next_tokens``, modules that predict further tokens are left out.

    Raises ``ConfigError`` if no family can hold the model, ``CheckpointError`` if the directory is
    not empty.
    """
    directory = Path(directory)
    check(dtype in DTYPES, f"dtype {dtype!r}: there are {', '.join(DTYPES)}.")
    check_not_quantised(params, f"{directory} is to be written")
    config = replace(config, vocab_size=params["embedding_VD"].shape[0])
    if not next_tokens:
        config, params, bias_LE = leave_out_next_tokens(config, params, bias_LE)
    written = write_config(config, hf, family)
    arrays = flatten_dict(params) | ({} if bias_LE is None else {BIAS: bias_LE})
    shapes = {path: array.shape for path, array in arrays.items()}
    entries = accounts.list_entries(written["model_type"], config, shapes)
    entries = accounts.add_copies(entries, config)
    types = {path: _choose_type(path, array, dtype) for path, array in arrays.items()}
    written |= {"dtype": str(types[("embedding_VD",)])}
    written |= more or {}
    written.pop("torch_dtype", None)  # the same by an older name
    codec = choose_codec(quantise, written["model_type"], entries, hf or {})
    if codec is not None:
        written["quantization_config"] = codec.write_config(list_plain(entries, codec))

    make_new_directory(directory)
    sizes = [count_bytes(entry, types[entry.paths[0]], codec) for entry in entries]
    shards = _split_into_shards(entries, sizes, shard_bytes)
    count, total = len(shards), sum(sizes)
    files: dict[str, str] = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing", delay=3) as bar:
        for number, shard in enumerate(shards, start=1):
            name = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            tensors: dict[str, np.ndarray] = {}
            for entry in shard:
                made = dict(_make_tensors(entry, arrays, types, config, codec))
                tensors |= made
                bar.update(sum(tensor.nbytes for tensor in made.values()))
            save_tensors(tensors, directory / name)
            files |= dict.fromkeys(tensors, name)
    if count > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        write_json(directory / INDEX, index)
    if files_from is not None:
        copy_other_files(files_from, directory)
    write_json(directory / "config.json", written)  # last: the sign of a whole checkpoint
    return written["model_type"]


@contextlib.contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A folder to write to in the ``with``. At its end all that is in it becomes the content of a
    new ``directory``; if it fails, nothing of it stays; if it is killed, the next try removes it.

    Raises ``CheckpointError`` as ``make_new_directory`` does, and if another process is writing
    there; ``RunError`` on a full disk.
    """
    place = directory / UNFINISHED
    with _claim(place) as made, writing_to("another new directory"):

        def remove() -> None:
            shutil.rmtree(place, ignore_errors=True)
            remove_empty(made)

        try:
            with last_act(lambda _: remove()):
                yield place
            # The last one is the sign of a whole directory.
            for path in sorted(place.iterdir(), key=lambda path: path.name == "config.json"):
                path.rename(directory / path.name)
            place.rmdir()
        except BaseException:
            remove()
            raise


@contextlib.contextmanager
def _claim(place: Path) -> Iterator[list[Path]]:
    """Make a folder in a new directory and hold it; what an interrupted command left there goes.
    Gives the folders that were made, the innermost first.
    """
    directory = place.parent
    with contextlib.ExitStack() as stack:
        try:
            if place.is_dir() and not place.is_symlink():
                stack.callback(os.close, lock_folder(place))
                print(f"removing what an interrupted command left in {directory}", file=sys.stderr)
                shutil.rmtree(place, ignore_errors=True)
            made = [place, *make_new_directory(directory)]
            place.mkdir()
            stack.callback(os.close, lock_folder(place))
        except BlockingIOError as error:
            raise CheckpointError(
                f"another command is writing to {directory}: wait for it, or give another new"
                f" directory."
            ) from error
        except OSError as error:
            raise CheckpointError(f"cannot write to {directory}: {error}.") from error
        yield made


def make_new_directory(directory: Path) -> list[Path]:
    """Make a directory; returns the folders that were made, the innermost first. Raises
    ``CheckpointError`` if something is in it, or it cannot be made.
    """
    try:
        made = make_folders(directory)
        there = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise CheckpointError(f"cannot write to {directory}: {error}.") from error
    if there:
        raise CheckpointError(
            f"{directory} is not empty ({', '.join(there[:3])}): give a new directory."
        )
    return made


def copy_other_files(source: Path, target: Path) -> None:
    """Copy the tokenizer and what else belongs to a checkpoint."""
    for name in OTHER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def save_tensors(tensors: dict[str, np.ndarray], file: Path) -> None:
    try:
        file.touch()  # with the rights of any new file; the library's own are its owner's alone
        rights = stat.S_IMODE(file.stat().st_mode)
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(rights)
    except SafetensorError as error:  # a full disk, too
        raise CheckpointError(f"cannot write {file}: {error}.") from error


def _choose_type(path: ArrayPath, array: jax.Array, dtype: str) -> np.dtype:
    if path == BIAS:
        return np.dtype("float32")
    return np.dtype(array.dtype if dtype == "auto" else getattr(ml_dtypes, dtype, dtype))


def _split_into_shards(entries: list[Entry], sizes: list[int], largest: int) -> list[list[Entry]]:
    """The entries, which have these ``sizes``, in files of at most ``largest`` bytes, in order."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry, more in zip(entries, sizes, strict=True):
        if size + more > largest and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += more
    return shards


def _make_tensors(
    entry: Entry,
    arrays: dict[ArrayPath, jax.Array],
    types: dict[ArrayPath, np.dtype],
    config: ModelConfig,
    codec: Codec | None,
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of an entry: one layer's arrays are fetched, not more."""
    index = () if entry.index is None else entry.index
    ours = [np.asarray(arrays[path][index]).astype(types[path]) for path in entry.paths]
    for number, name in enumerate(entry.names):
        arrays_of_one = [array[number] for array in ours] if entry.rule.is_per_expert else ours
        tensor = entry.rule.write(arrays_of_one, config)
        for part_name, part in write_tensor(name, tensor, entry, codec):
            yield part_name, np.asarray(part, order="C")
