"""Which parameters of a model are quantised, and how: those that tokens are multiplied with.

These are experts, the matrices of attention, of dense and of shared feed-forward layers, and the
head. Routers, norms and biases are small, and stay. Of the embedding a token reads one row, and
where it is the head all are read: it takes a byte a number, with a scale for each row.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.config.mesh import MeshConfig
from moejax.moe.quantised import (
    Kind,
    Quantised,
    find_obstacle,
    has_quantised,
    is_quantised,
    quantise,
)
from moejax.runtime import partition

EMBEDDING = "embedding_VD"
SMALL = ("w_router_DE", "w_beta_DH", "w_step_DH")
"""Matrices that stay: they decide where tokens go, and how much a memory keeps."""
FINE = {"int8": (), "fp8": (), "int4": (32, 16, 8)}
"""The groups that are taken by default: the first that divides what is summed, else all of it."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How the weights of a model are quantised."""

    kind: Kind
    group: int | Literal["channel"] | None = None
    """How many numbers that are summed together share a scale; `channel` means all of them. By
    default 32 for int4, where that divides them, and else all."""
    embedding: bool = True
    """Whether the embedding is quantised, too."""

    @property
    def words(self) -> str:
        """The flags that ask for this."""
        return f"--weights {self.kind}" + (f" --group {self.group}" if self.group else "")


@dataclass(frozen=True)
class Form:
    """How one parameter is quantised: see ``quantise``."""

    kind: Kind
    group: int | None
    axis: int


def choose_form(name: str, shape: tuple[int, ...], weights: Weights) -> Form | None:
    """How the parameter of this name is quantised, or None if it stays. Raises ``ConfigError`` if
    the group does not divide what is summed.
    """
    if name == EMBEDDING:
        if not weights.embedding:
            return None
        return Form("fp8" if weights.kind == "fp8" else "int8", None, -1)
    matrix = name.startswith("w_") and name in partition.PARAMETERS
    if not matrix or name in SMALL:
        return None
    size, group = shape[-2], weights.group
    if group is None:
        group = next((g for g in FINE[weights.kind] if size % g == 0), "channel")
    number = None if group == "channel" else group
    if reason := find_obstacle(size, weights.kind, number):
        advice = "" if number is None else " Leave --group out, or give one that divides it."
        raise ConfigError(f"{weights.words}: in {name}, {reason}.{advice}")
    return Form(weights.kind, number, -2)


def quantise_params(params: dict, weights: Weights) -> dict:
    """A tree of parameters with matrices as ``Quantised``."""

    def change(path: tuple, w: jax.Array) -> Any:
        form = choose_form(path[-1].key, w.shape, weights)
        return w if form is None else quantise(w, form.kind, form.group, form.axis)

    return jax.tree_util.tree_map_with_path(change, params)


def quantise_shape(name: str, like: jax.ShapeDtypeStruct, weights: Weights | None) -> Any:
    """What becomes of an array of this name: a ``Quantised`` of shapes, or ``like`` itself."""
    form = None if weights is None else choose_form(name, like.shape, weights)
    if form is None:
        return like
    return jax.eval_shape(lambda w: quantise(w, form.kind, form.group, form.axis), like)


def quantise_shapes(params: dict, weights: Weights | None) -> dict:
    """``quantise_shape`` of a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, like: quantise_shape(path[-1].key, like, weights), params
    )


def check_spread(params: Any, layout: MeshConfig) -> None:
    """Raise ``ConfigError`` for quantised parameters (or their shapes, with shardings) that a mesh
    cannot hold: groups must be whole on each device.
    """
    for w in filter(is_quantised, jax.tree.leaves(params, is_leaf=is_quantised)):
        check(
            not layout.fsdp,
            "--mesh.fsdp gathers weights for use, but quantised ones are decoded where they lie:"
            " leave it out.",
        )
        spec = getattr(w.codes.sharding, "spec", P())
        axes = (*spec, *[None] * (w.ndim - len(spec)))
        groups, axis = w.scales.shape[w.axis], axes[w.axis]
        parts = layout.model if axis == "model" else 1
        check(
            (groups == 1 or groups % parts == 0) and w.codes.shape[w.axis] % parts == 0,
            f"--mesh.model {parts} cannot spread {groups} groups of {w.group} numbers: give --group"
            f" channel, which has one scale for all that is summed.",
        )


def check_not_quantised(params: Any, what: str) -> None:
    """Raise ``ConfigError`` for quantised parameters where these are to be the weights themselves:
    ``what`` says where.
    """
    check(
        not has_quantised(params),
        f"{what}, but its weights are quantised: open the model without --weights, or without"
        f" `weights`.",
    )


def count_bits(params: Any) -> float:
    """Bits that a number takes on average, scales included."""
    numbers = sum(math.prod(w.shape) for w in jax.tree.leaves(params, is_leaf=is_quantised))
    held = sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(params))
    return 8 * held / numbers


def spread(w: Any, spec: P) -> Any:
    """How the parts of a parameter lie where it lies as ``spec`` says: scales of a whole dimension
    are on every device.
    """
    if not isinstance(w, Quantised):
        return spec
    sizes = w.scales.shape[w.ndim - len(spec) :]
    scales = P(*[None if size == 1 else axis for axis, size in zip(spec, sizes, strict=True)])
    return Quantised(spec, scales, w.kind, w.axis)  # type: ignore[arg-type]
