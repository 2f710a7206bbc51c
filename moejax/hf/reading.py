"""Models from Hugging Face's checkpoints: every tensor is checked before the first is read."""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.errors import CheckpointError, ConfigError
from moejax.config.mesh import MeshConfig
from moejax.config.mesh_fit import check_mesh
from moejax.config.model import ModelConfig
from moejax.hf import accounts
from moejax.hf.accounts import BIAS, EMBEDDING, HEAD
from moejax.hf.arrays import lay_out, read_arrays
from moejax.hf.codecs import Codec, Source, find_codec, rename_scales
from moejax.hf.configs import find_family, read_config, with_defaults
from moejax.hf.files import (
    WEIGHTS,
    Tensor,
    find_files,
    open_tensors,
    read_json,
    read_tensor,
)
from moejax.hf.tensors import ArrayPath, Entry
from moejax.hf.text_part import take_text_config, take_text_tensors
from moejax.models.decoder import DecoderLM
from moejax.models.initial_params import selection_bias_shape
from moejax.moe.lying import lie_quantised
from moejax.moe.quantise_params import Weights, check_spread, quantise_shape
from moejax.runs.quantised_mark import refuse_quantised
from moejax.runtime import device_mesh
from moejax.runtime.place_arrays import PART_BYTES
from moejax.runtime.room import ROOM, check_room, count_bytes

DTYPES = ("float32", "bfloat16", "auto")


@dataclass(frozen=True)
class Pretrained:
    """A model as it was read: settings, parameters, and how to run it."""

    config: ModelConfig
    params: dict
    """As ``DecoderLM`` has them: the layers of a run are stacked."""
    bias_LE: jax.Array | None
    """The selection bias of each routed layer, which is no parameter; float32."""
    hf: dict[str, Any]
    """The ``config.json`` that it came with."""
    directory: Path
    mesh: Mesh | None = None
    layout: MeshConfig = MeshConfig()

    @property
    def model(self) -> DecoderLM:
        """The Linen module."""
        return _language_model(self.config, self.layout)

    def apply(
        self, params: dict, tokens_BN: jax.Array, real_BN: jax.Array | None = None
    ) -> jax.Array:
        """``logits_BNV`` (float32), a pure function of the parameters: nothing is dropped.

        ``real_BN`` is False at padding, at either end. Of a model on a mesh, to be called under
        ``jax.set_mesh(pretrained.mesh)``.
        """
        return _apply(self.model, params, self.bias_LE, make_batch(tokens_BN, real_BN))


def make_batch(tokens_BN: jax.Array, real_BN: jax.Array | None = None) -> dict[str, jax.Array]:
    """One text a row, as ``DecoderLM`` wants it. Positions count from the first real token."""
    real_BN = jnp.ones_like(tokens_BN) if real_BN is None else jnp.asarray(real_BN, jnp.int32)
    positions_BN = jnp.maximum(jnp.cumsum(real_BN, axis=1) - 1, 0) * real_BN
    return {"inputs": jnp.asarray(tokens_BN), "segments": real_BN, "positions": positions_BN}


@partial(jax.jit, static_argnums=0)
def _apply(
    model: DecoderLM, params: dict, bias_LE: jax.Array | None, batch: dict[str, jax.Array]
) -> jax.Array:
    return model.apply({"params": lie_quantised(params)}, batch, False, bias_LE)[0]


def load(
    directory: str | Path,
    dtype: str = "float32",
    *,
    mesh: Mesh | None = None,
    layout: MeshConfig | None = None,
    allow_not_finite: bool = True,
    next_tokens: bool = True,
    weights: Weights | None = None,
) -> Pretrained:
    """Read a checkpoint: ``config.json`` and safetensors in one directory.

    ``dtype``: of the parameters, ``float32``, ``bfloat16``, or ``auto``, which keeps bfloat16 and
    makes float32 of all else; products are computed in it, too. On a ``mesh`` (see
    ``device_mesh.make_mesh``, with its ``layout``) every device gets its own part alone. The host
    never holds more than the experts of one layer. Nothing in the directory is executed.

    With ``weights``, matrices are quantised as they are read. The model runs as before, but can be
    neither trained nor exported.

    Weights that are not finite are named in a warning; with ``allow_not_finite=False`` they are an
    error.

    Layers that predict further tokens are left out where ``next_tokens`` is False, or the files
    have none.

    Raises ``UserError`` for whatever is missing, unknown, misshapen, damaged or not supported.
    """
    directory = Path(directory)
    refuse_quantised(directory, "reading it as a checkpoint")
    check(dtype in DTYPES, f"dtype {dtype!r}: there are {', '.join(DTYPES)}.")
    found = survey(directory, next_tokens)
    layout = layout or MeshConfig()
    check_mesh(found.config, layout)
    types = found.choose_types(dtype)
    in_16_bits = types[("embedding_VD",)].itemsize == 2
    config = replace(found.config, dtype="bfloat16" if in_16_bits else "float32")

    shapes = {path: jax.ShapeDtypeStruct(found.shapes[path], kind) for path, kind in types.items()}
    like = {path: quantise_shape(path[-1], shape, weights) for path, shape in shapes.items()}
    like = lay_out(like, mesh, layout)
    check_spread(like, layout)
    check_room(count_bytes(jax.tree.leaves(like)), f"{directory}", ROOM)
    _check_copies(found)
    arrays, spoilt = read_arrays(found.entries, like, found.sources, config)
    report_not_finite(spoilt, allow_not_finite)
    for reason in sorted(set(found.left_out.values()) - {accounts.TWICE}):
        print(f"left out: {reason}", file=sys.stderr)
    bias_LE = arrays.pop(BIAS, None)
    if bias_LE is None and (shape := selection_bias_shape(config)) is not None:
        (none,) = jax.tree.leaves(
            lay_out({BIAS: jax.ShapeDtypeStruct(shape, np.float32)}, mesh, layout)
        )
        bias_LE = jnp.zeros(shape, np.float32, device=none.sharding)
    return Pretrained(config, unflatten_dict(arrays), bias_LE, found.hf, directory, mesh, layout)


@dataclass(frozen=True)
class Survey:
    """What a checkpoint is, by its ``config.json`` and the heads of its files."""

    hf: dict[str, Any]
    family: str
    config: ModelConfig
    codec: Codec | None
    tensors: dict[str, Tensor]
    """All that are on disk."""
    entries: list[Entry]
    sources: dict[str, Source]
    """Where each tensor of an entry lies."""
    left_out: dict[str, str]
    """Tensors that have no place in the model, by name, and why."""
    shapes: dict[ArrayPath, tuple[int, ...]]
    """Of our arrays."""

    def choose_types(self, dtype: str) -> dict[ArrayPath, np.dtype]:
        """The types of our arrays with ``dtype``, one of ``DTYPES``."""
        entries = self.entries
        return {
            p: _choose_type(entry, self.sources, dtype) for entry in entries for p in entry.paths
        }


def survey(directory: Path, next_tokens: bool = True) -> Survey:
    """Read ``config.json`` and the heads of the files, and check that they agree, with the layers
    that predict further tokens or without. Raises ``UserError``.
    """
    files = find_files(directory)
    whole = read_json(directory / "config.json")
    try:
        hf = take_text_config(whole)
        family, config = find_family(hf), read_config(hf)
        codec = find_codec(hf.get("quantization_config"))
    except ConfigError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from error
    tensors = open_tensors(*files, accounts.count_tensors(family, config, hf, codec))
    tensors = take_text_tensors(whole, tensors)
    accounts.check_numbers(family, config, tensors)
    rename_scales(tensors, codec)
    if config.tie_embeddings and EMBEDDING not in tensors and HEAD in tensors:
        tensors[EMBEDDING] = tensors.pop(HEAD)  # one tensor by its other name
    if not (next_tokens and accounts.has_next_tokens(config, tensors)):
        config = replace(config, next_tokens=0)
    shapes = array_shapes(config)
    if accounts.lacks_bias(family, tensors):
        shapes.pop(BIAS, None)
    entries = accounts.list_entries(family, config, shapes, tensors)
    sources, left_out = accounts.check_tensors(entries, tensors, with_defaults(hf), config, codec)
    return Survey(hf, family, config, codec, tensors, entries, sources, left_out, shapes)


def report_not_finite(names: list[str], allowed: bool) -> None:
    """Name the tensors with weights that are not finite: in a warning, or in a ``CheckpointError``
    if they are not allowed.
    """
    if not names:
        return
    several = f"{len(names):,} tensors have" if len(names) > 1 else "a tensor has"
    listed = ", ".join(names[:3]) + f" and {len(names) - 3:,} more" * (len(names) > 3)
    message = f"{several} weights that are NaN or infinite: {listed}."
    if not allowed:
        raise CheckpointError(
            f"{message} A model with these generates nothing of use: look for a whole copy of it."
            f" --allow-not-finite True goes on with them."
        )
    print(f"warning: {message}", file=sys.stderr)


def _language_model(config: ModelConfig, layout: MeshConfig) -> DecoderLM:
    assert config.vocab_size is not None  # as in every config that is read from such a checkpoint
    return DecoderLM(config, config.vocab_size, layout)


def array_shapes(config: ModelConfig) -> dict[ArrayPath, tuple[int, ...]]:
    """The shapes of a model's arrays by path, the selection bias among them."""
    model = _language_model(config, MeshConfig())
    batch = make_batch(jnp.zeros((device_mesh.token_devices(), 1), jnp.int32))
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, False))["params"]
    shapes = {path: leaf.shape for path, leaf in flatten_dict(tree).items()}
    if (bias := selection_bias_shape(config)) is not None:
        shapes[BIAS] = bias
    return shapes


def _choose_type(entry: Entry, sources: dict[str, Source], dtype: str) -> np.dtype:
    """The type of an entry's arrays; the selection bias is float32 always."""
    if BIAS in entry.paths:
        return np.dtype("float32")
    if dtype != "auto":
        return np.dtype(getattr(ml_dtypes, dtype, dtype))
    kinds = {sources[name].kind for name in entry.names}
    return np.dtype(ml_dtypes.bfloat16 if kinds == {"BF16"} else "float32")


def _check_copies(found: Survey) -> None:
    """What is on disk twice must be the same: a head beside ``tie_word_embeddings``, and embedding
    and head in layers that predict further tokens.
    """
    copies = {HEAD: EMBEDDING} if found.config.tie_embeddings else {}
    for copy, name in (copies | accounts.name_copies(found.config)).items():
        tensor, original = found.tensors.get(copy), found.sources[name]
        if tensor is None or _is_copy(tensor, original):
            continue
        if copy == HEAD:
            raise CheckpointError(
                f"config.json says tie_word_embeddings, but {HEAD} is not {EMBEDDING}."
            )
        raise CheckpointError(
            f"{copy} is not {name}: layers that predict further tokens share it with the model."
            f" {accounts.LEAVE_OUT}"
        )


def _is_copy(one: Tensor, other: Source) -> bool:
    """Whether two tensors are plain and hold the same numbers, or the same bits; rows are looked at
    some after the others.
    """
    if one.kind not in WEIGHTS or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    rows, step = one.shape[0], max(1, PART_BYTES * one.shape[0] // max(1, one.nbytes))
    here, there = read_tensor(one), read_tensor(other)
    parts = (slice(first, first + step) for first in range(0, rows, step))
    if one.kind == other.kind:
        return all(here[part].tobytes() == there[part].tobytes() for part in parts)
    return all(np.array_equal(here[part], there[part]) for part in parts)
