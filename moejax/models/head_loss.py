"""The loss of an output head, from hidden states: a chunk of tokens at a time, so that the logits
of all tokens are never there.

The gradient is computed in the same loop, while a chunk's logits are there. It can be, as the loss
is one number: what comes later only scales it. So no logits are computed twice, and nothing of a
chunk is kept (as in Liger Kernel, Hsu et al. 2024, section 3.2).

On a mesh each device has its own tokens, and its own part of the vocabulary.

Letters: Q: modules whose states the head reads; V: tokens of a device's part of the vocabulary;
X: tokens of a chunk; Y: devices over which tokens are spread.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec as P

from moejax.models.chunk_loss import Aim, Part, multiply
from moejax.models.head import Head
from moejax.runtime import partition

CHUNK = 1 << 24
"""How many logits a chunk may have (64 MiB) ..."""
FEWEST = 1024
"""... but no fewer tokens than these: after each chunk the matrix's gradient is read and written,
which must not take as long as the products."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadSums:
    """Sums over the tokens that count. ``loss`` alone has a gradient."""

    loss: jax.Array
    """Nats and the weighted log^2 Z, of all modules, each times its own weight."""
    nats_Q: jax.Array
    """Cross-entropy, of smoothed targets if the aim is."""
    log_z_squared_Q: jax.Array
    best_QBN: tuple[jax.Array, ...] | None
    """The most probable token of each position, if asked for."""


Arrays = tuple[jax.Array, ...]


@dataclass(frozen=True)
class Tokens:
    """What each module is told of the tokens; a tuple each."""

    x_QBND: Arrays
    """Hidden states. Where a token does not count, they may be anything."""
    target_QBN: Arrays
    """What should be predicted, int32."""
    real_QBN: Arrays
    """Which tokens count."""


jax.tree_util.register_dataclass(Tokens)


@dataclass(frozen=True)
class Way:
    """How the sums are found, and which."""

    scale: float
    """What logits are multiplied with."""
    vocab_size: int
    aim: Aim
    best: bool
    """Whether the most probable tokens are wanted."""
    unroll: bool
    """Whether the loop over chunks is unrolled."""


def sum_losses(
    head: Head, tokens: Tokens, weight_Q: jax.Array, aim: Aim, best: bool = False
) -> HeadSums:
    """The losses of all that a head reads; ``weight_Q`` (float32) is what each module's sums count
    in ``loss``.
    """
    way = Way(head.scale, head.vocab_size, aim, best, head.unroll)
    if head.reads_in_place:
        part = Part(head.read, None, **vars(way))
        sums_2Q, best_QBN, *_ = _add_up(part, tokens, weight_Q)
        return _join(sums_2Q, best_QBN, weight_Q, aim)
    found = _sum_losses(head.as_array(tokens.x_QBND[0].dtype), tokens, weight_Q, way)
    rest = (found.nats_Q, found.log_z_squared_Q, found.best_QBN)
    return HeadSums(found.loss, *lax.stop_gradient(rest))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sum_losses(w_DV: jax.Array, tokens: Tokens, weight_Q: jax.Array, way: Way) -> HeadSums:
    sums_2Q, best_QBN, *_ = _on_each_device(w_DV, tokens, weight_Q, way)
    return _join(sums_2Q, best_QBN, weight_Q, way.aim)


def _forward(w_DV: Any, tokens: Any, weight_Q: Any, way: Way) -> tuple[HeadSums, tuple]:
    w, tokens, weight = jax.tree.map(
        lambda p: p.value, (w_DV, tokens, weight_Q), is_leaf=lambda p: hasattr(p, "perturbed")
    )
    gradients = ("x", "w") if w_DV.perturbed else ("x",)
    sums_2Q, best_QBN, *found = _on_each_device(w, tokens, weight, way, gradients)
    return _join(sums_2Q, best_QBN, weight, way.aim), tuple(found)


def _backward(way: Way, gradients: tuple, d: HeadSums) -> tuple:
    dx_QBND, dw_YDV = gradients
    if isinstance(d.loss, SymbolicZero):
        return None, None, None
    dx_QBND = tuple((dx * d.loss).astype(dx.dtype) for dx in dx_QBND)
    dw_DV = None
    if dw_YDV is not None:
        dw_DV = (dw_YDV * d.loss).astype(dx_QBND[0].dtype).sum(0)
    return dw_DV, Tokens(dx_QBND, None, None), None  # type: ignore[arg-type]


_sum_losses.defvjp(_forward, _backward, symbolic_zeros=True)


def _join(sums_2Q: jax.Array, best_QBN: Any, weight_Q: jax.Array, aim: Aim) -> HeadSums:
    nats_Q, log_z_squared_Q = sums_2Q
    loss_Q = nats_Q
    if aim.z_loss_weight:
        loss_Q += aim.z_loss_weight * log_z_squared_Q
    return HeadSums((weight_Q * loss_Q).sum(), nats_Q, log_z_squared_Q, best_QBN)


def _on_each_device(
    w_DV: jax.Array, tokens: Tokens, weight_Q: jax.Array, way: Way, gradients: tuple[str, ...] = ()
) -> tuple:
    """``_add_up``, by each device of its own; the gradient of the matrix with a leading Y, each
    device's.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def run(axis: str | None, w_DV: jax.Array, tokens: Tokens, weight_Q: jax.Array) -> tuple:
        read = lambda x_XD: multiply(x_XD, w_DV, ((1,), (0,))) * way.scale  # noqa: E731
        part = Part(read, w_DV, **vars(way), axis=axis, gradients=gradients)
        *found, dw_DV = _add_up(part, tokens, weight_Q)
        return *found, None if dw_DV is None else dw_DV[None]

    if mesh.empty or mesh.size == 1:
        return run(None, w_DV, tokens, weight_Q)
    spread, axis = partition.TOKENS, partition.find_vocabulary_axis(way.vocab_size)

    def on_device(*arrays: Any) -> tuple:
        sums_2Q, *found = run(axis, *arrays)
        return lax.psum(sums_2Q, spread), *found

    return jax.shard_map(
        on_device,
        in_specs=(P(None, axis), P(spread), P()),
        out_specs=(P(), P(spread), P(spread), P(spread, None, axis)),
        check_vma=False,  # what is alike along the axis of the vocabulary
    )(w_DV, tokens, weight_Q)


def _add_up(part: Part, tokens: Tokens, weight_Q: jax.Array) -> tuple:
    """Of one device's tokens: the sums of nats and of log^2 Z, [2, Q], the best tokens, and the
    gradients of ``loss``, of ``x`` and of ``w``; None for what is not wanted.
    """
    dw_DV, found = None, []
    for q, (x_BND, *of_BN) in enumerate(zip(*vars(tokens).values(), strict=True)):
        flat = (x_BND.reshape(-1, x_BND.shape[-1]), *(of.reshape(-1) for of in of_BN))
        sums_2, dw_DV, best_T, dx_TD = _run_chunks(part, weight_Q[q], dw_DV, flat)
        best_BN = None if best_T is None else best_T.reshape(x_BND.shape[:-1])
        found.append((sums_2, best_BN, None if dx_TD is None else dx_TD.reshape(x_BND.shape)))
    sums, best, dx = zip(*found, strict=True)
    if part.axis is not None and part.gradients:
        dx = lax.psum(dx, part.axis)
    return jnp.stack(sums, 1), best if part.best else None, dx if part.gradients else None, dw_DV


def chunk_size(T: int, V: int) -> int:
    """How many of T tokens a chunk has, where a device has V columns of the matrix."""
    chunks = math.ceil(T / max(FEWEST, CHUNK // V))
    return math.ceil(T / chunks)


def _run_chunks(part: Part, weight: jax.Array, dw_DV: jax.Array | None, tokens: tuple) -> tuple:
    """``part.sum_up`` of all tokens, chunk by chunk."""
    (T, D), V = tokens[0].shape, part.size
    X = chunk_size(T, V)
    if X == T:
        return part.sum_up(weight, dw_DV, *tokens)

    def cut(a: jax.Array) -> jax.Array:
        more = [(0, -T % X), *[(0, 0)] * (a.ndim - 1)]
        return (jnp.pad(a, more) if T % X else a).reshape(-1, X, *a.shape[1:])

    def merge(a: jax.Array) -> jax.Array:
        return a.reshape(-1, *a.shape[2:])[:T]

    def step(carry: tuple, chunk: tuple) -> tuple:
        sums_2, dw_DV = carry
        more_2, dw_DV, *given = part.sum_up(weight, dw_DV, *chunk)
        return (sums_2 + more_2, dw_DV), given

    if dw_DV is None and "w" in part.gradients:
        dw_DV = jnp.zeros((D, V), jnp.float32)
    start, unroll = (jnp.zeros(2), dw_DV), bool(part.unroll)
    found: Any = lax.scan(step, start, tuple(map(cut, tokens)), unroll=unroll)
    (sums_2, dw_DV), given = found
    return sums_2, dw_DV, *jax.tree.map(merge, given)
