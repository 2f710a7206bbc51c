"""What all forms of attention share: into heads, and out of them.

Letters: A: width of a head; U: width of a head's values; X: all heads side by side.
"""

import flax.linen as nn
import jax

from moejax.moe.lying import multiply
from moejax.moe.parameters import weight, zeros
from moejax.runtime import partition


def project(module: nn.Module, name: str, x_BND: jax.Array, width: int) -> jax.Array:
    """``x_BND`` times a matrix of this name that makes vectors of this width of it."""
    return multiply(x_BND, weight(module, name, (x_BND.shape[-1], width), x_BND.dtype))


def add_bias(module: nn.Module, name: str, x_BNX: jax.Array, there: bool) -> jax.Array:
    """``x_BNX`` plus a bias parameter, where there is one."""
    return x_BNX + zeros(module, name, x_BNX.shape[-1:]).astype(x_BNX.dtype) if there else x_BNX


def split_heads(x_BNX: jax.Array, count: int) -> jax.Array:
    """``x_BNX`` cut into so many heads: ``x_BNHA``."""
    return partition.pin(x_BNX.reshape(*x_BNX.shape[:2], count, -1), "heads_BNHA")


def join_heads(
    module: nn.Module, y_BNHU: jax.Array, x_BND: jax.Array, bias: bool, gate: bool
) -> jax.Array:
    """What heads found, multiplied back to the width of the residual stream: ``y_BND``. With a
    ``gate`` it is multiplied first by sigmoid(x w) of the layer's input ``x_BND`` (Qiu et al. 2025,
    Eq. 5).
    """
    y_BNX = partition.pin(y_BNHU, "heads_BNHA").reshape(*y_BNHU.shape[:2], -1)
    if gate:
        gate_BNX = project(module, "w_output_gate_DX", x_BND, y_BNX.shape[-1])
        y_BNX = y_BNX * jax.nn.sigmoid(gate_BNX)
    y_BND = add_bias(module, "b_out_D", project(module, "w_out_XD", y_BNX, x_BND.shape[-1]), bias)
    return partition.pin(y_BND, "tokens_BND")
