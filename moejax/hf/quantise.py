"""Which tensors of a model `moejax export --quantise` gives codes, and how that is said.

Letters: X: an embedding and a hidden state, side by side.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from moejax.config.checks import check
from moejax.hf.codecs import CODECS, Codec, encode, find_codec
from moejax.hf.files import TYPES
from moejax.hf.fp8 import Fp8Blocks
from moejax.hf.tensors import Entry

NEVER = ("w_router_DE", "w_shared_gate_D1", "w_merge_XD", "w_beta_DH", "w_step_DH")
"""Our matrices in a layer that are not quantised."""


def choose_codec(
    name: str | None, family: str, entries: list[Entry], original: dict[str, Any]
) -> Codec | None:
    """The codec of ``--quantise``, in the blocks of ``original``, the ``config.json`` that a model
    was read from, if that has the same. Raises ``ConfigError`` if the family's layout has none.
    """
    if name is None:
        return None
    check(name in CODECS, f"--quantise {name}: there are {', '.join(CODECS)}.")
    codec = CODECS[name]
    before = find_codec(original.get("quantization_config"))
    codec = before if before is not None and before.name == name else codec
    stacked = any(entry.is_bank and not entry.rule.is_per_expert for entry in entries)
    banks = any(entry.is_bank for entry in entries)
    if name == "mxfp4":
        check(
            stacked and family == "gpt_oss",
            f"--quantise mxfp4: its layout is that of gpt_oss alone, not of {family}. There are fp8"
            f" and int4 for families with a tensor for each expert.",
        )
    else:
        check(
            not stacked,
            f"--quantise {name}: {family} models have all experts of a layer in one tensor, for"
            f" which {name} has no layout." + " Give mxfp4." * (family == "gpt_oss"),
        )
    check(
        name != "int4" or banks,
        f"--quantise int4 is of experts, and {family} models have none. Give fp8.",
    )
    for entry in entries:
        if isinstance(codec, Fp8Blocks) or not has_codes(entry, codec):
            continue
        width = entry.shape[-2 if codec.swapped else -1]
        check(
            width % codec.group == 0,
            f"--quantise {name}: {entry.names[0]} is {width} wide, which groups of {codec.group} do"
            f" not divide." + " fp8 takes all widths." * (name == "int4"),
        )
    return codec


def has_codes(entry: Entry, codec: Codec | None) -> bool:
    """Whether a codec is for an entry: fp8 for all matrices of the layers but routers, the others
    for experts. Embeddings and the head have no codes.
    """
    if codec is None or entry.index is None or entry.paths[0][-1] in NEVER:
        return False
    return entry.is_bank or (codec.name == "fp8" and len(entry.shape) == 2)


def list_plain(entries: list[Entry], codec: Codec) -> list[str]:
    """The modules that have a matrix without codes, by their names on disk."""
    return sorted(
        {
            name.removesuffix(".weight")
            for entry in entries
            for name in entry.names
            if len(entry.shape) == 2 and name.endswith(".weight") and not has_codes(entry, codec)
        }
    )


def count_bytes(entry: Entry, dtype: np.dtype, codec: Codec | None) -> int:
    """Of all tensors of an entry, as they are written."""
    if codec is None or not has_codes(entry, codec):
        return len(entry.names) * math.prod(entry.shape) * dtype.itemsize
    parts = codec.list_parts(entry.shape)
    one = sum(math.prod(part.shape) * TYPES[part.kinds[0]].itemsize for part in parts)
    return len(entry.names) * one


def write_tensor(
    name: str, tensor: np.ndarray, entry: Entry, codec: Codec | None
) -> Iterator[tuple[str, np.ndarray]]:
    """A tensor, or its parts, by name."""
    if codec is None or not has_codes(entry, codec):
        yield name, tensor
    else:
        yield from encode(name, tensor, codec)
