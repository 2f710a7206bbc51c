"""Models from Hugging Face's checkpoints, tensor by tensor into where they shall lie."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from safetensors import safe_open
from tqdm import tqdm

from moejax.config.checks import check
from moejax.config.errors import CheckpointError, ConfigError
from moejax.config.mesh import MeshConfig
from moejax.config.mesh_fit import check_mesh
from moejax.config.model import ModelConfig
from moejax.hf import accounts
from moejax.hf.accounts import BIAS, Entry
from moejax.hf.configs import family_of, read_config
from moejax.hf.files import TYPES, Tensor, open_tensors, read_json
from moejax.models.decoder import DecoderLM
from moejax.runtime import device_mesh, partition

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
        return _apply(self.model, params, self.bias_LE, as_batch(tokens_BN, real_BN))


def as_batch(tokens_BN: jax.Array, real_BN: jax.Array | None = None) -> dict[str, jax.Array]:
    """One text a row, as ``DecoderLM`` wants it. Positions count from the first real token."""
    real_BN = jnp.ones_like(tokens_BN) if real_BN is None else jnp.asarray(real_BN, jnp.int32)
    positions_BN = jnp.maximum(jnp.cumsum(real_BN, axis=1) - 1, 0) * real_BN
    return {"inputs": jnp.asarray(tokens_BN), "segments": real_BN, "positions": positions_BN}


@partial(jax.jit, static_argnums=0)
def _apply(
    model: DecoderLM, params: dict, bias_LE: jax.Array | None, batch: dict[str, jax.Array]
) -> jax.Array:
    return model.apply({"params": params}, batch, False, bias_LE)[0]


def load(
    directory: str | Path,
    dtype: str = "float32",
    *,
    mesh: Mesh | None = None,
    layout: MeshConfig | None = None,
) -> Pretrained:
    """Read a checkpoint: ``config.json`` and safetensors in one directory.

    ``dtype``: of the parameters, ``float32``, ``bfloat16``, or ``auto``, which keeps bfloat16 and
    makes float32 of all else; products are computed in it, too. On a ``mesh`` (see
    ``mesh.make_mesh``, with its ``layout``) every device gets its own part alone. The host never
    holds more than the experts of one layer. Nothing in the directory is executed.

    Raises ``UserError`` for whatever is missing, unknown, misshapen, damaged or not supported.
    """
    directory = Path(directory)
    check(dtype in DTYPES, f"dtype {dtype!r}: there are {', '.join(DTYPES)}.")
    tensors = open_tensors(directory)
    hf = read_json(directory / "config.json")
    try:
        family, config = family_of(hf), read_config(hf)
    except ConfigError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from error
    layout = layout or MeshConfig()
    check_mesh(config, layout)
    shapes = array_shapes(config)
    wanted = accounts.entries(family, config, shapes)
    left_out = accounts.check(wanted, tensors, hf, config)
    types = {path: _type(entry, tensors, dtype) for entry in wanted for path in entry.paths}
    in_16_bits = types[("embedding_VD",)].itemsize == 2
    config = replace(config, dtype="bfloat16" if in_16_bits else "float32")

    lying = shardings(shapes, mesh, layout)
    arrays: dict[accounts.Path, jax.Array] = {}
    with _reader() as read:
        _check_tied(config, tensors, read)
        total = sum(tensors[name].nbytes for entry in wanted for name in entry.names)
        with tqdm(total=total, unit="B", unit_scale=True, desc="reading", delay=3) as progress:
            for entry in wanted:
                sources = [tensors[name] for name in entry.names]
                for part, path in enumerate(entry.paths):
                    shape, of, sharding = shapes[path], types[path], lying[path]
                    of_layer = shape if entry.index is None else shape[1:]
                    get = partial(_array, entry, part, sources, read, config, of_layer, of)
                    if entry.index is None:
                        arrays[path] = _placed(shape, sharding, get)
                        continue
                    if path not in arrays:
                        arrays[path] = _zeros(shape, of, sharding)()
                    one = _placed(of_layer, _of_layer(sharding), get)
                    # Waited for: what is still on its way would add up on the host.
                    arrays[path] = jax.block_until_ready(_filled(arrays[path], one, entry.index))
                    del one
                progress.update(sum(source.nbytes for source in sources))
    if any(accounts.layer_of(name) is not None for name in left_out):
        last = config.num_layers
        print(f"left out: layer {last}, which predicts a second token", file=sys.stderr)
    bias_LE = arrays.pop(BIAS, None)
    return Pretrained(config, accounts.nested(arrays), bias_LE, hf, directory, mesh, layout)


def _language_model(config: ModelConfig, layout: MeshConfig) -> DecoderLM:
    assert config.vocab_size is not None  # as in every config that is read from such a checkpoint
    return DecoderLM(config, config.vocab_size, layout)


def array_shapes(config: ModelConfig) -> dict[accounts.Path, tuple[int, ...]]:
    """The shapes of a model's arrays by path, the selection bias among them."""
    model, moe = _language_model(config, MeshConfig()), config.moe
    batch = as_batch(jnp.zeros((device_mesh.token_devices(), 1), jnp.int32))
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, False))["params"]
    shapes = {path: leaf.shape for path, leaf in accounts.flat(tree).items()}
    routed = sum(config.routed_layers)
    if routed and moe.has_selection_bias:
        shapes[BIAS] = (routed, moe.num_choices)
    return shapes


def _type(entry: Entry, tensors: dict[str, Tensor], dtype: str) -> np.dtype:
    """The type of an entry's arrays; the selection bias is float32 always."""
    if BIAS in entry.paths:
        return np.dtype("float32")
    if dtype != "auto":
        return np.dtype(getattr(ml_dtypes, dtype, dtype))
    kinds = {TYPES[tensors[name].kind] for name in entry.names}
    return np.dtype(ml_dtypes.bfloat16 if kinds == {"bfloat16"} else "float32")


def _check_tied(config: ModelConfig, tensors: dict[str, Tensor], read: Callable) -> None:
    """A head on disk beside ``tie_word_embeddings`` must be the embedding."""
    head = tensors.get("lm_head.weight")
    if config.tie_embeddings and head is not None:
        embedding = read(tensors["model.embed_tokens.weight"])
        if not np.array_equal(read(head), embedding):
            raise CheckpointError(
                "config.json says tie_word_embeddings, but lm_head.weight is not"
                " model.embed_tokens.weight."
            )


@contextlib.contextmanager
def _reader() -> Iterator[Callable[[Tensor], np.ndarray]]:
    """A function that reads a tensor, and keeps the file open that it was in."""
    with contextlib.ExitStack() as stack:
        opened: dict[Path, Any] = {}

        def read(tensor: Tensor) -> np.ndarray:
            if tensor.file not in opened:
                opened[tensor.file] = stack.enter_context(safe_open(tensor.file, "np"))
            return opened[tensor.file].get_tensor(tensor.name)

        yield read


def shardings(
    shapes: dict[accounts.Path, tuple[int, ...]], mesh: Mesh | None, layout: MeshConfig
) -> dict[accounts.Path, Sharding]:
    """How each array lies; without a mesh, on the first device."""
    if mesh is None:
        return dict.fromkeys(shapes, SingleDeviceSharding(jax.devices()[0]))
    like = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    return accounts.flat(partition.tree_shardings(mesh, accounts.nested(like), layout.fsdp))


def _of_layer(sharding: Sharding) -> Sharding:
    """How one layer's part of an array lies."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:]))


def _placed(shape: tuple[int, ...], sharding: Sharding, get: Callable) -> jax.Array:
    """An array of which each device is given the part that it holds, and copies are read once."""
    parts: dict[tuple, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        key = tuple(range(size)[s] for s, size in zip(index, shape, strict=True))
        if key not in parts:
            parts[key] = np.ascontiguousarray(get(index))
        return parts[key]

    return jax.make_array_from_callback(shape, sharding, part)


def _array(
    entry: Entry,
    part: int,
    sources: list[Tensor],
    read: Callable,
    config: ModelConfig,
    shape: tuple[int, ...],
    dtype: np.dtype,
    index: tuple[slice, ...],
) -> np.ndarray:
    """A part of one array of ours, in one layer; of experts only those in it are read."""
    if not entry.rule.by_expert:
        return entry.rule.read(read(sources[0]), part, config)[index].astype(dtype)
    experts = sources[index[0]]
    sizes = [len(range(size)[s]) for s, size in zip(index[1:], shape[1:], strict=True)]
    array = np.empty((len(experts), *sizes), dtype)
    for number, expert in enumerate(experts):
        array[number] = entry.rule.read(read(expert), part, config)[index[1:]]
    return array


@cache
def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding) -> Callable:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@partial(jax.jit, donate_argnums=0)
def _filled(all_: jax.Array, one: jax.Array, index: int) -> jax.Array:
    """``all_`` with ``one`` at ``index``, in the same memory."""
    return jax.lax.dynamic_update_index_in_dim(all_, one, index, 0)
