"""A layer's bank of experts in training: gradients go to its own arrays, and products read the same
numbers in the stack of all layers' banks.

Cut out of the stack, a bank in front of a kernel or of a loop is copied whole, forward and
backward.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from moejax.moe.lying import Lying, lie_at, open_bank
from moejax.moe.quantised import is_quantised
from moejax.runtime import device_mesh

Arrays = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Trained:
    """An array of a layer's bank, which gradients go to, and where its numbers lie, in the type of
    the activations. Who can't read them there takes the array.
    """

    own: Any
    lying: Lying

    @property
    def shape(self) -> tuple[int, ...]:
        return self.own.shape

    @property
    def dtype(self) -> jnp.dtype:
        """That of what products read."""
        return self.lying.dtype

    def astype(self, dtype: Any) -> Any:
        return self.own if is_quantised(self.own) else self.own.astype(dtype)


def cast_stacks(stacks: Arrays, dtype: Any) -> Arrays:
    """The stacks of a bank's arrays as products read them: in this type, without a gradient."""

    def cast(p: Any) -> Any:
        return p if is_quantised(p) else jax.lax.stop_gradient(p).astype(dtype)

    return jax.tree.map(cast, stacks, is_leaf=is_quantised)


def reads_stacks(dtype: Any, fsdp: bool) -> bool:
    """Whether products in this type should read banks in their stacks. Not where matrices are
    gathered for use, which gives a layer's own; nor on CPUs in 16 bits, where XLA would convert the
    whole stack to take an expert out of it.
    """
    return not fsdp and (device_mesh.platform() != "cpu" or jnp.dtype(dtype).itemsize > 2)


def part_bank(params: dict[str, Any]) -> tuple[Arrays, Arrays, Any]:
    """The arrays that have gradients, the stacks in which products read, and the layer: of a bank
    as arrays the first, of one that is ``Lying`` the others, of one that is ``Trained`` all.
    """
    one = jax.tree.leaves(params)[0]
    if isinstance(one, Lying):
        return {}, *open_bank(params)
    if not isinstance(one, Trained):
        return params, {}, None
    own = jax.tree.map(lambda p: p.own, params)
    return own, *open_bank(jax.tree.map(lambda p: p.lying, params))


def join_bank(own: Arrays, stacks: Arrays, layer: Any) -> dict[str, Any]:
    """The inverse of ``part_bank``."""
    if not stacks:
        return dict(own)
    lying = lie_at(stacks, layer)
    return train_bank(own, lying) if own else lying


def train_bank(own: Arrays, lying: dict[str, Any]) -> dict[str, Any]:
    """A bank as ``Trained``, of its arrays and of where they lie."""
    return jax.tree.map(Trained, own, lying, is_leaf=is_quantised)
