"""The adapters of a whole model (LoRA, Hu et al. 2021): which matrices have them, how they begin,
and how a model is put together with them.

What is trained is a tree like that of the parameters, with less in it: in the place of a matrix its
adapter ``{"lora_a", "lora_b"}``, and routers, if they are trained, as they are.

Letters: P: rank of an adapter.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from moejax.config.errors import ConfigError
from moejax.config.lora import LoraConfig
from moejax.moe.adapted import A, Adapted, B
from moejax.moe.quantise_params import Weights
from moejax.moe.quantised import Quantised, dequantise, is_quantised

Path = tuple[str, ...]
ROUTERS = ("w_router_", "b_router_", "w_noise_", "router_scale", "w_shared_gate_")
"""How the names of a router's parameters begin, and of the gate of shared experts."""


def find_place(path: Path) -> str | None:
    """Which of ``config.lora.PLACES`` the parameter at a path is in, as a matrix that can have an
    adapter; else None.
    """
    name = path[-1]
    if not name.startswith("w_") or name.startswith(ROUTERS):
        return None
    if "attention" in path:
        return "attention"
    if "shared" in path or "feed_forward" in path:
        return "dense"
    return "experts" if "moe" in path else None


def adapter_shapes(shapes: dict[str, Any], lora: LoraConfig) -> dict[str, Any]:
    """Shapes of what is trained (float32), from those of a model's parameters. Raises
    ``ConfigError`` if that is nothing.
    """
    assert lora.rank is not None  # else nothing is frozen
    found: dict[Path, jax.ShapeDtypeStruct] = {}
    adapted = False
    for path, leaf in flatten_dict(shapes).items():
        if find_place(path) in lora.places:
            *leading, D, F = leaf.shape
            found[(*path, A)] = jax.ShapeDtypeStruct((*leading, D, lora.rank), jnp.float32)
            found[(*path, B)] = jax.ShapeDtypeStruct((*leading, lora.rank, F), jnp.float32)
            adapted = True
        elif lora.routers and path[-1].startswith(ROUTERS):
            found[path] = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
    if not adapted:
        raise ConfigError(
            f"--run.lora.on {lora.on}: the model has no such matrices. Name others, or leave it"
            f" out."
        )
    return unflatten_dict(found)


def begin_adapters(params: dict[str, Any], lora: LoraConfig, key: jax.Array) -> dict[str, Any]:
    """What is trained, before the first step: A normal with variance 1 / fan-in, B zero, so that
    adapters add nothing (section 4.1 of the paper); routers as in ``params``.
    """
    given, shapes = flatten_dict(params), flatten_dict(adapter_shapes(params, lora))
    keys = jax.random.split(key, len(shapes))

    def begin(path: Path, like: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        if path[-1] == A:
            return jax.random.normal(key, like.shape, like.dtype) * like.shape[-2] ** -0.5
        if path[-1] == B:
            return jnp.zeros(like.shape, like.dtype)
        return given[path].astype(like.dtype)

    return unflatten_dict(
        {path: begin(path, like, keys[n]) for n, (path, like) in enumerate(shapes.items())}
    )


def attach(params: dict[str, Any], trained: dict[str, Any], scale: float) -> dict[str, Any]:
    """The parameters of the adapted model: those of the base, ``Adapted`` where there is an
    adapter, and with the trained routers. No numbers are touched.
    """
    made = dict(params)
    for name, new in trained.items():
        if not isinstance(new, dict):
            made[name] = new
        elif A in new:
            made[name] = Adapted(params[name], new[A], new[B], scale)
        else:
            made[name] = attach(params[name], new, scale)
    return made


def merge(params: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """``attach``'s parameters as those of a plain model: what was quantised in ``dtype``, all else
    in the type that it has. They take the place of the matrices that they are made of, which are
    gone.
    """

    def change(leaf: Any) -> Any:
        if isinstance(leaf, Adapted):
            kind = dtype if is_quantised(leaf.w) else leaf.w.dtype
            add_up = _add_up if is_quantised(leaf.w) else _add_up_in_place
            return add_up(leaf.w, (leaf.a, leaf.b), leaf.scale, kind)
        return dequantise(leaf, dtype) if is_quantised(leaf) else leaf

    return jax.tree.map(change, params, is_leaf=lambda p: isinstance(p, Adapted | Quantised))


@partial(jax.jit, static_argnums=(2, 3))
def _add_up(w: Any, adapter: tuple[jax.Array, jax.Array], scale: float, dtype: Any) -> jax.Array:
    return Adapted(w, *adapter, scale).astype(dtype)


_add_up_in_place = jax.jit(_add_up, static_argnums=(2, 3), donate_argnums=0)


def find_weights(lora: LoraConfig) -> Weights | None:
    """How the frozen matrices are quantised; None if they are not. Of the embedding rows are taken:
    it stays.
    """
    return None if lora.base == "full" else Weights(kind=lora.base, embedding=False)


@dataclass(frozen=True)
class AdaptedModel:
    """A model that is run with a frozen base and what is trained of it: to be called like the model
    with the trained parameters alone.
    """

    model: nn.Module
    base: dict[str, Any]
    lora: LoraConfig

    @property
    def config(self) -> Any:
        """The settings of the model."""
        return self.model.config

    @property
    def vocab_size(self) -> int:
        """Tokens, or classes, that the model tells apart."""
        return self.model.vocab_size

    @property
    def layout(self) -> Any:
        """How it lies on the mesh."""
        return self.model.layout

    def apply(self, variables: dict[str, Any], *args: Any, **options: Any) -> Any:
        """See ``flax.linen.Module.apply``."""
        params = attach(self.base, variables["params"], self.lora.scale)
        return self.model.apply({"params": params}, *args, **options)


def adapt(model: nn.Module, base: dict[str, Any] | None, lora: LoraConfig) -> Any:
    """The model itself where there is no base, as all of it is trained; or an ``AdaptedModel``."""
    return model if base is None else AdaptedModel(model, base, lora)
