"""Feed-forward networks, single or in a bank with a leading E: pure functions over a dict of
arrays.
"""

import functools

import jax
from jax import lax

GATED = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}
PLAIN = {"gelu": jax.nn.gelu, "relu": jax.nn.relu}


def matrices(activation: str) -> tuple[str, ...]:
    """The weights that a feed-forward network of this activation has."""
    return ("w_gate", "w_up", "w_down") if activation in GATED else ("w_up", "w_down")


def feed_forward(params: dict[str, jax.Array], x_BND: jax.Array, activation: str) -> jax.Array:
    """One dense feed-forward network: ``w_gate_DF``, ``w_up_DF``, ``w_down_FD`` on ``x_BND``."""
    x_1TD = x_BND.reshape(1, -1, x_BND.shape[-1])
    weights = {name[:-3]: w[None] for name, w in params.items()}
    return _networks(activation, weights, x_1TD).reshape(x_BND.shape)


def bank(params: dict[str, jax.Array], x_EGCD: jax.Array, activation: str) -> jax.Array:
    """E feed-forward networks, each on its own slots: ``w_gate_EDF``, ``w_up_EDF``, ``w_down_EFD``.

    An empty slot holds zeros and comes out as zeros.
    """
    E, G, C, D = x_EGCD.shape
    weights = {name[:-4]: w for name, w in params.items()}
    return _networks(activation, weights, x_EGCD.reshape(E, G * C, D)).reshape(E, G, C, D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _networks(activation: str, weights: dict[str, jax.Array], x_ETD: jax.Array) -> jax.Array:
    """SwiGLU and GeGLU (Shazeer 2020): (act(x W_gate) * (x W_up)) W_down; gelu, relu: act(x W_up)
    W_down.

    The gradient is the usual one, written out so that every product for a weight has the saved
    activation as its first operand. In JAX's own order XLA:CPU transposes the *other* one, and
    computes the activation function again, column by column, for each (docs/benchmarks.md).
    """
    return _forward(activation, weights, x_ETD)[0]


def _forward(activation, weights, x_ETD):
    projected = [x_ETD @ weights[name] for name in matrices(activation)[:-1]]
    y_ETD = _hidden(activation, *projected) @ weights["w_down"]
    return y_ETD, (weights, x_ETD, projected)


def _hidden(activation: str, *projected: jax.Array) -> jax.Array:
    if activation in GATED:
        gate, up = projected
        return GATED[activation](gate) * up
    return PLAIN[activation](*projected)


def _backward(activation, saved, dy_ETD):
    weights, x_ETD, projected = saved
    h_ETF, pull = jax.vjp(functools.partial(_hidden, activation), *projected)
    d_projected = pull(_times_transposed(dy_ETD, weights["w_down"]))
    grads = {"w_down": _over_tokens(h_ETF, dy_ETD)}
    dx_ETD = 0
    for name, d_ETF in zip(matrices(activation)[:-1], d_projected, strict=True):
        grads[name] = _over_tokens(x_ETD, d_ETF)
        dx_ETD += _times_transposed(d_ETF, weights[name])
    return grads, dx_ETD


_networks.defvjp(_forward, _backward)


def _times_transposed(a_ETX: jax.Array, w_EYX: jax.Array) -> jax.Array:
    """``a @ w.T`` for each expert: [E, T, Y]."""
    return lax.dot_general(a_ETX, w_EYX, (((2,), (2,)), ((0,), (0,))))


def _over_tokens(a_ETX: jax.Array, b_ETY: jax.Array) -> jax.Array:
    """``a.T @ b`` for each expert: [E, X, Y]."""
    return lax.dot_general(a_ETX, b_ETY, (((1,), (1,)), ((0,), (0,))))
