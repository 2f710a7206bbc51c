"""Softmax attention on TPUs by the Pallas kernels ``splash_attention`` that ship with JAX.

They walk over blocks of queries and keys and keep no scores; blocks of keys that no query sees by
its index are left out. Packed documents are told apart by their numbers. (The kernels' successor,
in tokamax 0.0.12, cannot be installed beside tyro: it wants typeguard 2.)

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; U: width of a
head's values; X: positions, in whole blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from moejax.models.attend.carried import BLOCK_BYTES
from moejax.models.attend.seen import Seen, list_limits

BLOCKS = (1024, 512, 256, 128)
"""Positions in a block."""
AT_A_TIME = 512
"""Keys whose scores with a block of queries lie in fast memory together."""
FLOPS_PER_BYTE = 240
"""What a TPU computes while it moves a byte: v4 220, v5e 240, v5p 170, v6e 560. A block of so many
queries computes as long as keys and values of two bytes a number take to come."""
SLACK = 1.125
"""So much more arithmetic is taken for larger blocks, as each begins with a pause."""


def attend_splash(
    q_BNHA: jax.Array,
    k_BMJA: jax.Array,
    v_BMJU: jax.Array,
    seen: Seen,
    sink_H: jax.Array | None,
    scale: float,
    *,
    interpret: bool = False,
) -> jax.Array:
    """As ``by_form.attend``, of queries to keys in the same rows (N = M), which are in order
    (``Seen.in_order``). Positions of padding are told apart by their index, as those of a document.
    """
    B, N, _, _ = q_BNHA.shape
    limits = list_limits(seen, N)
    width = q_BNHA.dtype.itemsize * (q_BNHA.shape[-1] + v_BMJU.shape[-1])
    blocks = [choose_block(N, limit, seen.causal, width) for limit in limits]
    rest = -N % max(blocks)

    def lay_out(x_BNHA: jax.Array) -> jax.Array:
        return jnp.pad(x_BNHA.swapaxes(1, 2), ((0, 0), (0, 0), (0, rest), (0, 0)))

    of_BN = jnp.broadcast_to(seen.of_BN, (B, N))
    arrays = (
        lay_out(q_BNHA * jnp.asarray(scale, q_BNHA.dtype)),
        lay_out(k_BMJA),
        lay_out(v_BMJU),
        jnp.pad(of_BN, ((0, 0), (0, rest)), constant_values=-1),
        sink_H,
    )
    runs = [
        partial(_run, limit=limit, causal=seen.causal, block=block, interpret=interpret)
        for limit, block in zip(limits, blocks, strict=True)
    ]
    y_BHXU = runs[0](*arrays) if seen.near is None else jax.lax.cond(seen.near, *runs, *arrays)
    return y_BHXU[:, :, :N].swapaxes(1, 2)


def choose_block(N: int, limit: int | None, causal: bool, width: int) -> int:
    """How many positions a block has: the most that make a kernel's arithmetic, or the moving of
    keys and values, little longer than it could be. ``width``: bytes of a key and its value.
    """

    def time(block: int) -> float:
        pairs = count_blocks(N, block, limit, causal) * block**2
        return pairs * max(1, FLOPS_PER_BYTE / block)

    fitting = [block for block in BLOCKS if block * width <= BLOCK_BYTES]
    least = min(map(time, fitting))
    return next(block for block in fitting if time(block) <= SLACK * least)


def count_blocks(N: int, block: int, limit: int | None, causal: bool) -> int:
    """Pairs of blocks, one of queries and one of keys, in which a query sees a key by index."""
    last = np.arange(-(-N // block))
    if not causal:
        return len(last) ** 2
    first = np.zeros_like(last) if limit is None else (last * block - limit + 1) // block
    return int((last - np.maximum(first, 0) + 1).sum())


def _run(
    q_BHXA: jax.Array,
    k_BJXA: jax.Array,
    v_BJXU: jax.Array,
    of_BX: jax.Array,
    sink_H: jax.Array | None,
    *,
    limit: int | None,
    causal: bool,
    block: int,
    interpret: bool,
) -> jax.Array:
    """``y_BHXU``; positions are counted by their index."""
    H, X = q_BHXA.shape[1:3]
    mask = Band(X, limit) if causal else masks.FullMask((X, X))
    few = min(block, AT_A_TIME)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * H),
        # One kernel for all gradients would keep a part of dq for each block of keys.
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=few,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=few,
            block_q_dq=block,
            block_kv_dq=few,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def of_row(q: jax.Array, k: jax.Array, v: jax.Array, of_X: jax.Array) -> jax.Array:
        return kernel(q, k, v, kernels.SegmentIds(of_X, of_X), sink_H)

    return jax.vmap(of_row)(q_BHXA, k_BJXA, v_BJXU, of_BX)


@dataclass(frozen=True)
class Band(masks.Mask):
    """Which keys a query sees by index: those that are not after it, and of these the last
    ``limit``, where there is a limit.

    It is the library's ``CausalMask`` or ``LocalMask``, but knows of whole blocks whether they are
    seen; theirs try all pairs of positions, which takes 20 s for 64k of them.
    """

    length: int
    limit: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Queries and keys."""
        return (self.length, self.length)

    @property
    def q_sequence(self) -> np.ndarray:
        """The index of each query."""
        return np.arange(self.length, dtype=np.int32)

    @property
    def mask_function(self) -> Callable:
        """The mask, of indices of queries and keys: kernels call it."""
        return _make_function(self.limit)

    def __getitem__(self, at: tuple[slice, slice]) -> np.ndarray:
        """The mask of a block; a single number where it is the same in all of the block."""
        queries, keys = at
        nearest, farthest = queries.start - keys.stop + 1, queries.stop - 1 - keys.start
        if farthest < 0 or (self.limit is not None and nearest >= self.limit):
            return np.zeros((1, 1), bool)
        if nearest >= 0 and (self.limit is None or farthest < self.limit):
            return np.ones((1, 1), bool)
        q, k = np.arange(queries.start, queries.stop), np.arange(keys.start, keys.stop)
        return self.mask_function(q[:, None], k)


@cache
def _make_function(limit: int | None) -> Callable:
    if limit is None:
        return lambda q, k: q >= k
    return lambda q, k: (q >= k) & (q - k < limit)
