"""The gated delta rule (Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks"): a memory of fixed
size that is read, corrected and written at every position.

Letters: A: width of a query or key; I: value heads to each key head; J: key heads; M: positions of
a chunk that are looked at; P: positions of a chunk; U: width of a value; W: a value and a key side
by side; X: chunks of a sequence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from moejax.models.unit_triangular import solve_unit_lower

CHUNK = 64
"""Positions of a chunk, as in the authors' code."""


class DeltaInput(NamedTuple):
    """What the rule reads at every position. H, the number of value heads, is a multiple of J.

    A position that is padding has ``log_decay`` 0 and ``beta`` 0: it changes nothing.
    """

    q_BNJA: jax.Array
    k_BNJA: jax.Array
    v_BNHU: jax.Array
    log_decay_BNH: jax.Array
    """Natural logarithm of alpha, at most 0: what is kept of the memory."""
    beta_BNH: jax.Array
    """The share of what is found at the key that the value replaces, in [0, 1]."""
    fresh_BN: jax.Array
    """Where the memory begins anew: the first position of a document. See ``find_fresh``."""


def find_fresh(segments_BN: jax.Array) -> jax.Array:
    """Where a document begins: at real positions whose segment is not that of the last real one."""
    all_BN = jnp.pad(segments_BN, ((0, 0), (1, 0)))
    number_BN = jnp.where(all_BN > 0, jnp.arange(all_BN.shape[1]), 0)
    last_BN = jax.lax.cummax(number_BN, axis=1)[:, :-1]
    return (segments_BN > 0) & (jnp.take_along_axis(all_BN, last_BN, axis=1) != segments_BN)


def step_by_step(x: DeltaInput, state_BHAU: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """One position after the other: what is read, ``y_BNHU``, and the memory after the last.

    Eq. 10, with S of shape [A, U]: S <- alpha S; S <- S + k (beta (v - k S)); y = q S. All in the
    type of the memory, by default float32 and empty.
    """
    heads = x.v_BNHU.shape[2] // x.k_BNJA.shape[2]
    start_BHAU = _empty(x) if state_BHAU is None else state_BHAU
    dtype = start_BHAU.dtype

    def step(S_BHAU: jax.Array, now: DeltaInput) -> tuple[jax.Array, jax.Array]:
        # Each has lost its N.
        q_BHA, k_BHA = (jnp.repeat(a.astype(dtype), heads, axis=1) for a in (now[0], now[1]))
        kept_BH = jnp.where(now.fresh_BN[:, None], 0, jnp.exp(now.log_decay_BNH.astype(dtype)))
        S_BHAU = S_BHAU * kept_BH[..., None, None]
        found_BHU = (k_BHA[..., None] * S_BHAU).sum(-2)
        new_BHU = (now.v_BNHU.astype(dtype) - found_BHU) * now.beta_BNH.astype(dtype)[..., None]
        S_BHAU = S_BHAU + k_BHA[..., None] * new_BHU[..., None, :]
        return S_BHAU, (q_BHA[..., None] * S_BHAU).sum(-2)

    over_N = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), x)
    last_BHAU, y_NBHU = jax.lax.scan(step, start_BHAU, over_N)
    return jnp.moveaxis(y_NBHU, 0, 1), last_BHAU


def in_chunks(
    x: DeltaInput, state_BHAU: jax.Array | None = None, chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:
    """The same as ``step_by_step``, a chunk of positions after the other (section 3.3).

    Within a chunk, what each position writes depends on what those before it wrote; this is one
    triangular system, solved for all chunks at once. Then the memory goes from chunk to chunk. No
    array has more than N x ``chunk`` numbers to a head.

    Deviation: the decay from one position to another is the sum of what lies between, not the
    difference of two sums from the chunk's beginning, which cancels where the decay is strong.
    """
    N, dtype = x.q_BNJA.shape[1], jnp.float32 if state_BHAU is None else state_BHAU.dtype
    state_BHAU = _empty(x) if state_BHAU is None else state_BHAU
    B, H, A, U = state_BHAU.shape
    J, P = x.k_BNJA.shape[2], min(chunk, N)
    x = jax.tree.map(lambda a: _cut(a, P), x)
    # [X, B, J, (I,) P, ...]: heads first, as products want them.
    q_XBJPA, k_XBJPA = (jnp.moveaxis(a, 2, 3).astype(dtype) for a in (x.q_BNJA, x.k_BNJA))
    v_XBJIPU, log_XBJIP, beta_XBJIP = (
        jnp.moveaxis(a.reshape(*a.shape[:3], J, H // J, *a.shape[4:]), 2, 4).astype(dtype)
        for a in (x.v_BNHU, x.log_decay_BNH, x.beta_BNH)
    )
    decay = _decays(log_XBJIP, x.fresh_BN)
    keys_XBJPM = jnp.einsum("XBJPA,XBJMA->XBJPM", k_XBJPA, k_XBJPA)
    below_PM = jnp.tri(P, k=-1, dtype=dtype)
    system_XBJIPM = beta_XBJIP[..., None] * keys_XBJPM[:, :, :, None] * decay.pairs_XBJIPM
    # What each position would write to an empty memory, and what it finds in the one before.
    k_XBJIPA = (beta_XBJIP * decay.from_start_XBJIP)[..., None] * k_XBJPA[:, :, :, None]
    both_XBJIPW = jnp.concatenate([beta_XBJIP[..., None] * v_XBJIPU, k_XBJIPA], -1)
    solved_XBJIPW = solve_unit_lower(system_XBJIPM * below_PM, both_XBJIPW)
    seen_XBJIPM = jnp.einsum("XBJPA,XBJMA->XBJPM", q_XBJPA, k_XBJPA)[:, :, :, None]
    each = _Chunk(
        q_XBJPA[:, :, :, None] * decay.from_start_XBJIP[..., None],
        k_XBJPA[:, :, :, None] * decay.to_end_XBJIP[..., None],
        solved_XBJIPW[..., :U],
        solved_XBJIPW[..., U:],
        seen_XBJIPM * decay.pairs_XBJIPM,
        decay.whole_XBJI,
    )
    state_BJIAU, y_XBJIPU = jax.lax.scan(_pass_chunk, state_BHAU.reshape(B, J, -1, A, U), each)
    y_BXPJIU = jnp.moveaxis(y_XBJIPU, (0, 4), (1, 2))
    return y_BXPJIU.reshape(B, -1, H, U)[:, :N], state_BJIAU.reshape(B, H, A, U)


class _Chunk(NamedTuple):
    """What is known of each chunk before the memory is; with a leading X."""

    q_BJIPA: jax.Array
    """Queries, times what is left of the memory before the chunk."""
    k_BJIPA: jax.Array
    """Keys, times what is left at the end of the chunk."""
    new_BJIPU: jax.Array
    found_BJIPA: jax.Array
    seen_BJIPM: jax.Array
    whole_BJI: jax.Array


def _pass_chunk(S_BJIAU: jax.Array, x: _Chunk) -> tuple[jax.Array, jax.Array]:
    """The memory after a chunk, and what its positions read."""
    new_BJIPU = x.new_BJIPU - jnp.einsum("BJIPA,BJIAU->BJIPU", x.found_BJIPA, S_BJIAU)
    y_BJIPU = jnp.einsum("BJIPA,BJIAU->BJIPU", x.q_BJIPA, S_BJIAU)
    y_BJIPU += jnp.einsum("BJIPM,BJIMU->BJIPU", x.seen_BJIPM, new_BJIPU)
    S_BJIAU = S_BJIAU * x.whole_BJI[..., None, None]
    return S_BJIAU + jnp.einsum("BJIPA,BJIPU->BJIAU", x.k_BJIPA, new_BJIPU), y_BJIPU


class _Decays(NamedTuple):
    """What is left of something after the positions of a chunk; 0 where the memory was emptied."""

    pairs_XBJIPM: jax.Array
    """At P, of what is written at M; 0 before."""
    from_start_XBJIP: jax.Array
    """At P, of the memory before the chunk."""
    to_end_XBJIP: jax.Array
    """After the chunk, of what is written at P."""
    whole_XBJI: jax.Array
    """After the chunk, of the memory before it."""


def _decays(log_XBJIP: jax.Array, fresh_XBP: jax.Array) -> _Decays:
    P, dtype = log_XBJIP.shape[-1], log_XBJIP.dtype
    document_XBP = jnp.cumsum(fresh_XBP, axis=-1)[:, :, None, None]
    at_or_below_PM = jnp.tri(P, dtype=dtype)
    exactly = jax.lax.Precision.HIGHEST
    # Of P and M, the sum over l with M < l <= P.
    after_XBJIlM = log_XBJIP[..., None] * (1 - at_or_below_PM.T)
    between_XBJIPM = jnp.einsum(
        "Pl,XBJIlM->XBJIPM", at_or_below_PM, after_XBJIlM, precision=exactly
    )
    same_XBJIPM = document_XBP[..., :, None] == document_XBP[..., None, :]
    same_XBJIPM &= at_or_below_PM > 0
    # Where it is not wanted the sum is 0, so that no gradient is infinite.
    between_XBJIPM = jnp.where(same_XBJIPM, between_XBJIPM, 0)
    pairs_XBJIPM = jnp.where(same_XBJIPM, jnp.exp(between_XBJIPM), 0)
    total_XBJIP = jnp.cumsum(log_XBJIP, axis=-1)
    from_start_XBJIP = jnp.where(document_XBP == 0, jnp.exp(total_XBJIP), 0)
    return _Decays(
        pairs_XBJIPM, from_start_XBJIP, pairs_XBJIPM[..., -1, :], from_start_XBJIP[..., -1]
    )


def _cut(a_BN: jax.Array, chunk: int) -> jax.Array:
    """[B, N, ...] as chunks [X, B, chunk, ...], with zeros at the end."""
    B, N = a_BN.shape[:2]
    padding = [(0, 0), (0, -N % chunk)] + [(0, 0)] * (a_BN.ndim - 2)
    return jnp.moveaxis(jnp.pad(a_BN, padding).reshape(B, -1, chunk, *a_BN.shape[2:]), 1, 0)


def _empty(x: DeltaInput) -> jax.Array:
    (B, _, H, U), A = x.v_BNHU.shape, x.k_BNJA.shape[-1]
    return jnp.zeros((B, H, A, U), jnp.float32)
