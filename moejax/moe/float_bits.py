"""Numbers in bfloat16 as their bits, in integers of 16 bits."""

import jax
import jax.numpy as jnp
from jax import lax


def to_bits(x: jax.Array) -> jax.Array:
    """The bits of an array, in bfloat16."""
    return lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def widen_bits(x: jax.Array) -> jax.Array:
    """Bits as float32; else the array."""
    if x.dtype != jnp.uint16:
        return x
    return lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)
