"""A frozen matrix, or bank of them, with a low-rank adapter beside it: x W + scale (x A) B.

LoRA, Hu et al. 2021, Eq. 3. The sum W + scale A B is never made where W is multiplied.

Letters: P: rank of an adapter.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moejax.moe.quantised import dequantise, is_quantised

A, B = "lora_a", "lora_b"
"""The two parts of an adapter by name, also in the names of ``partition.parameter_spec``."""


@partial(jax.tree_util.register_dataclass, data_fields=["w", "a", "b"], meta_fields=["scale"])
@dataclass(frozen=True, eq=False)
class Adapted:
    """Looks like ``w``; its adapter lies as it does. ``lying.multiply`` takes it as a matrix."""

    w: Any
    """``w_DF``, or ``w_EDF``: an array, or what else stands for one."""
    a: Any
    """``a_DP``, or ``a_EDP``."""
    b: Any
    """``b_PF``, or ``b_EPF``."""
    scale: float = field(default=1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.w.shape

    @property
    def ndim(self) -> int:
        return self.w.ndim

    @property
    def dtype(self) -> jnp.dtype:
        return self.w.dtype

    def at_index(self, *index: Any) -> "Adapted":
        """The part at an index, of parts that know of such."""
        w, a, b = (part.at_index(*index) for part in (self.w, self.a, self.b))
        return Adapted(w, a, b, self.scale)

    def add_up(self) -> jax.Array:
        """W + scale A B as one array: summed up in float32, in the type of W."""
        w, a, b = (as_array(part, jnp.float32) for part in (self.w, self.a, self.b))
        more = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST) * self.scale
        return (w + more).astype(self.dtype)

    def astype(self, dtype: Any) -> jax.Array:
        """As one array: for what is no product with W."""
        return self.add_up().astype(dtype)

    def __jax_array__(self) -> jax.Array:
        return self.add_up()


def as_array(w: Any, dtype: Any) -> jax.Array:
    """A parameter, whatever stands for it, as one array."""
    return dequantise(w, dtype) if is_quantised(w) else jnp.asarray(w).astype(dtype)


def map_parts(function: Callable[[str, Any], Any], name: str, w: Any) -> Any:
    """``function(name, part)`` of a parameter; of an adapted one, of each of its parts, whose names
    are those of their specs.
    """
    if not isinstance(w, Adapted):
        return function(name, w)
    a, b = function(f"{name}/{A}", w.a), function(f"{name}/{B}", w.b)
    return replace(w, w=function(name, w.w), a=a, b=b)


def split(params: Any, wanted: Any) -> tuple[Any, Any]:
    """The parameters whose gradients are ``wanted``, and the others: twice the tree, with None
    where a leaf is in the other one. ``wanted`` is such a tree, too: None where none is wanted.
    """

    def choose(one: bool) -> Any:
        return jax.tree.map(
            lambda w, p: p if (w is None) != one else None, wanted, params, is_leaf=_is_none
        )

    return choose(True), choose(False)


def join(trained: Any, frozen: Any) -> Any:
    """The inverse of ``split``."""
    return jax.tree.map(lambda p, q: q if p is None else p, trained, frozen, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None
