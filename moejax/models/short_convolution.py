"""A causal convolution over a few positions, for each channel alone.

Letters: M: positions with those before them; W: positions that an output looks at, itself included;
X: channels.
"""

import jax
import jax.numpy as jnp


def convolve(
    x_BNX: jax.Array, w_WX: jax.Array, fresh_BN: jax.Array, last_BWX: jax.Array | None = None
) -> jax.Array:
    """``y_BNX`` (float32): each channel's W last inputs in its document, times ``w_WX``; the last
    row is the position's own.

    ``fresh_BN`` is where documents begin (``delta_rule.find_fresh``); padding stands before or
    after a document, not inside it. ``last_BWX`` are the W - 1 inputs before the first (zeros
    where there were none); by default none.
    """
    W, N, X = w_WX.shape[0], x_BNX.shape[1], x_BNX.shape[2]
    if last_BWX is None:
        last_BWX = jnp.zeros((x_BNX.shape[0], W - 1, X), x_BNX.dtype)
    all_BMX = jnp.concatenate([last_BWX.astype(jnp.float32), x_BNX.astype(jnp.float32)], axis=1)
    document_BN = jnp.cumsum(fresh_BN, axis=1)
    of_BM = jnp.pad(document_BN, ((0, 0), (W - 1, 0)))
    y_BNX = jnp.zeros(x_BNX.shape, jnp.float32)
    for tap, w_X in enumerate(w_WX.astype(jnp.float32)):
        same_BN = of_BM[:, tap : tap + N] == document_BN
        y_BNX += jnp.where(same_BN[..., None], all_BMX[:, tap : tap + N], 0) * w_X
    return y_BNX


def convolve_on(
    x_BNX: jax.Array, w_WX: jax.Array, fresh_BN: jax.Array, real_BN: jax.Array, last_BWX: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """``convolve`` after the inputs that were kept, with padding anywhere, which is passed over;
    and the W - 1 inputs to keep: the last real ones of the last document.
    """
    W = w_WX.shape[0]
    # Real positions first, in their order.
    order_BN = jnp.argsort(~real_BN, axis=1, stable=True)
    x_BNX = jnp.take_along_axis(jnp.where(real_BN[..., None], x_BNX, 0), order_BN[..., None], 1)
    fresh_BN = jnp.take_along_axis(fresh_BN & real_BN, order_BN, 1)
    y_BNX = convolve(x_BNX, w_WX, fresh_BN, last_BWX)
    rank_BN = jnp.maximum(jnp.cumsum(real_BN, axis=1) - 1, 0)
    y_BNX = jnp.take_along_axis(y_BNX, rank_BN[..., None], 1)
    document_BM = jnp.pad(jnp.cumsum(fresh_BN, axis=1), ((0, 0), (W - 1, 0)))
    kept_BW = real_BN.sum(1)[:, None] + jnp.arange(W - 1)
    all_BMX = jnp.concatenate([last_BWX, x_BNX.astype(last_BWX.dtype)], axis=1)
    of_last_BW = jnp.take_along_axis(document_BM, kept_BW, 1) == document_BM[:, -1:]
    kept_BWX = jnp.take_along_axis(all_BMX, kept_BW[..., None], 1)
    return y_BNX, jnp.where(of_last_BW[..., None], kept_BWX, 0)
