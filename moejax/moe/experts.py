"""Feed-forward networks, single or in a bank with a leading E: functions of a dict of arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moejax.moe.dropout import Dropout
from moejax.moe.lying import multiply

Affine = Callable[[jax.Array, str, jax.Array | float], jax.Array]


def clamped_swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """The gate of gpt-oss (OpenAI 2025, its released code): clamped at 7, with a steeper sigmoid,
    and one more than the other factor.
    """
    gate, up = jnp.minimum(gate, 7.0), jnp.clip(up, -7.0, 7.0)
    return (up + 1) * gate * jax.nn.sigmoid(1.702 * gate)


GATED = {
    "swiglu": lambda gate, up: up * jax.nn.silu(gate),
    "geglu": lambda gate, up: up * jax.nn.gelu(gate),
    "clamped_swiglu": clamped_swiglu,
}
PLAIN = {"gelu": jax.nn.gelu, "relu": jax.nn.relu}


def matrices(activation: str) -> tuple[str, ...]:
    """The weights that a feed-forward network of this activation has."""
    return ("w_gate", "w_up", "w_down") if activation in GATED else ("w_up", "w_down")


def bank_shapes(
    activation: str, E: int, D: int, F: int, bias: bool = False
) -> dict[str, tuple[int, ...]]:
    """The arrays of a bank of E experts, by name; those with ``bias`` have one for each matrix."""
    shapes: dict[str, tuple[int, ...]]
    shapes = {"w_gate_EDF": (E, D, F), "w_up_EDF": (E, D, F), "w_down_EFD": (E, F, D)}
    biases = {"b_gate_EF": (E, F), "b_up_EF": (E, F), "b_down_ED": (E, D)}
    wanted = matrices(activation)
    found = {name: shape for name, shape in shapes.items() if name[:-4] in wanted}
    if bias:
        found |= {n: shape for n, shape in biases.items() if f"w_{n[2:-3]}" in wanted}
    return found


BANK = tuple(bank_shapes("swiglu", 1, 1, 1, bias=True))
"""The names of all arrays that a bank may have."""


def take_bank(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of the bank among the parameters of a routed layer."""
    return {name: params[name] for name in BANK if name in params}


def network(
    params: Mapping[str, Any],
    x_TD: jax.Array,
    activation: str,
    *,
    weight_T1: jax.Array | None = None,
    weigh: str = "output",
    dropout: Dropout | None = None,
) -> jax.Array:
    """One feed-forward network, or several with equal leading dimensions: ``y_TD``.

    ``params``: ``w_up_DF``, ``w_down_FD``, for gated activations ``w_gate_DF``, and where there are
    such the biases ``b_up_F``, ``b_gate_F``, ``b_down_D``; names may have an E for leading experts.
    The rest as in ``feed_forward``.
    """
    affine = affine_of(params)
    return feed_forward(affine, x_TD, activation, weight_T1=weight_T1, weigh=weigh, dropout=dropout)


def affine_of(params: Mapping[str, Any]) -> Affine:
    """What ``feed_forward`` asks for, of the parameters of ``network``."""
    parts = strip_dimensions(params)

    def affine(x: jax.Array, name: str, scale: jax.Array | float) -> jax.Array:
        y = multiply(x, parts[f"w_{name}"])
        bias = parts.get(f"b_{name}")
        if bias is None:
            return y
        return y + (scale * jnp.asarray(bias)[..., None, :]).astype(y.dtype)

    return affine


@jax.named_scope("feed_forward")
def feed_forward(
    affine: Affine,
    x_TD: jax.Array,
    activation: str,
    *,
    weight_T1: jax.Array | None = None,
    weigh: str = "output",
    dropout: Dropout | None = None,
) -> jax.Array:
    """What every expert computes, whatever does its products: ``y_TD``.

    SwiGLU and GeGLU (Shazeer 2020): (act(x W_gate) * (x W_up)) W_down. gelu, relu: act(x W_up)
    W_down. ``weight_T1`` multiplies the ``output`` or the ``input`` of each token; ``dropout`` acts
    on the hidden numbers (expert dropout, Fedus et al. 2021, section 2.4). ``affine(x, name,
    scale)`` is x W_name, plus ``scale`` times the bias of that name where there is one.
    """
    if weight_T1 is not None and weigh == "input":
        x_TD = (x_TD * weight_T1).astype(x_TD.dtype)
    h_TF = checkpoint_name(affine(x_TD, "up", 1.0), "hidden")
    if activation in GATED:
        gate_TF = checkpoint_name(affine(x_TD, "gate", 1.0), "hidden")
        h_TF = GATED[activation](gate_TF, h_TF)
    else:
        h_TF = PLAIN[activation](h_TF)
    if dropout is not None:
        h_TF = dropout(h_TF)
    if weight_T1 is None or weigh == "input":
        return affine(h_TF, "down", 1.0)
    return affine((h_TF * weight_T1).astype(h_TF.dtype), "down", weight_T1)


def strip_dimensions(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by their names without the dimensions: ``w_up``, ``b_down``."""
    return {name.rsplit("_", 1)[0]: p for name, p in params.items()}


def bank(
    params: dict[str, jax.Array],
    x_EGCD: jax.Array,
    activation: str,
    dropout: Dropout | None = None,
    weight_EGC1: jax.Array | None = None,
) -> jax.Array:
    """E networks, each on its own slots: ``w_gate_EDF``, ``w_up_EDF``, ``w_down_EFD``, times the
    weights of the slots, if there are such.

    Without biases, an empty slot holds zeros and comes out as zeros.
    """
    E, D = x_EGCD.shape[0], x_EGCD.shape[-1]
    weight_ET1 = None if weight_EGC1 is None else weight_EGC1.reshape(E, -1, 1)
    x_ETD = x_EGCD.reshape(E, -1, D)
    y_ETD = network(params, x_ETD, activation, weight_T1=weight_ET1, dropout=dropout)
    return y_ETD.reshape(x_EGCD.shape)
