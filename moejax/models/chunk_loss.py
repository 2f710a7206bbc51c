"""The loss of some tokens, from their hidden states, and its gradient. Where the vocabulary is
split over devices, each has the logits of its own part.

Letters: V: tokens of the part of the vocabulary; X: tokens that are looked at; 2: nats and squares.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a loss holds predictions to."""

    smoothing: float = 0.0
    """The share of the target probability that is spread evenly over all classes (Szegedy et al.
    2016, section 7)."""
    z_loss_weight: float = 0.0
    """The coefficient of log^2 Z; Z is the sum of the exponentials of a token's logits (PaLM,
    Chowdhery et al. 2022, section 5)."""


PLAIN = Aim()
"""The targets themselves."""


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the vocabulary, and what is wanted of it."""

    read: Callable[[jax.Array], jax.Array]
    """``x_XD -> logits_XV``, float32."""
    w_DV: jax.Array | None
    """What gradients are computed with."""
    scale: float
    """What logits are multiplied with."""
    vocab_size: int
    """Of all parts."""
    aim: Aim
    best: bool
    """Whether the most probable tokens are wanted."""
    unroll: bool = False
    """Whether a loop over chunks is unrolled."""
    axis: str | None = None
    """The axis of the mesh that has the parts; None for one part."""
    gradients: tuple[str, ...] = ()
    """Which are wanted: of the states (``x``) and of the matrix (``w``)."""

    @property
    def size(self) -> int:
        """V."""
        return self.vocab_size // (1 if self.axis is None else lax.axis_size(self.axis))

    def sum_up(
        self,
        weight: jax.Array,
        dw_DV: jax.Array | None,
        x_XD: jax.Array,
        target_X: jax.Array,
        real_X: jax.Array,
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None, jax.Array | None]:
        """The sums of nats and of log^2 Z over real tokens, ``sums_2``; with ``weight`` as the
        coefficient of the loss, what is added to ``dw_DV``; the most probable tokens ``best_X``;
        and ``dx_XD``, of this part. What is not wanted is None.
        """
        x_XD = jnp.where(real_X[:, None], x_XD, 0)
        logits_XV = self.read(x_XD)
        log_z_X = self._find_log_z(logits_XV)
        hit_XV = jnp.arange(self.size) == (target_X - self._first)[:, None]
        nats_X = log_z_X - self._add_parts(self._sum_aimed(logits_XV, hit_XV))
        sums_2 = jnp.stack([jnp.where(real_X, n, 0).sum() for n in (nats_X, log_z_X**2)])
        best_X = self._find_best(logits_XV) if self.best else None
        if not self.gradients:
            return sums_2, dw_DV, best_X, None
        assert self.w_DV is not None
        p_XV = jnp.exp(logits_XV - log_z_X[:, None])
        if self.aim.z_loss_weight:
            p_XV *= 1 + 2 * self.aim.z_loss_weight * log_z_X[:, None]
        factor_X = jnp.where(real_X, weight * self.scale, 0)
        spread = self.aim.smoothing / self.vocab_size
        aimed_XV = jnp.where(hit_XV, 1 - self.aim.smoothing + spread, spread)
        d_XV = ((p_XV - aimed_XV) * factor_X[:, None]).astype(x_XD.dtype)
        # ``x`` comes first: XLA:CPU copies the second factor, turned round (see ``product``).
        if "w" in self.gradients:
            more_DV = multiply(x_XD, d_XV, ((0,), (0,)))
            dw_DV = more_DV if dw_DV is None else dw_DV + more_DV
        dx_XD = multiply(d_XV, self.w_DV, ((1,), (1,))).astype(x_XD.dtype)
        return sums_2, dw_DV, best_X, dx_XD

    @property
    def _first(self) -> jax.Array | int:
        """The first token of the part."""
        return 0 if self.axis is None else lax.axis_index(self.axis) * self.size

    def _sum_aimed(self, logits_XV: jax.Array, hit_XV: jax.Array) -> jax.Array:
        """The logits of the targets, smoothed as they are."""
        aimed_X, s = jnp.where(hit_XV, logits_XV, 0).sum(-1), self.aim.smoothing
        return (1 - s) * aimed_X + s / self.vocab_size * logits_XV.sum(-1) if s else aimed_X

    def _find_log_z(self, logits_XV: jax.Array) -> jax.Array:
        """Log of the sum of all parts' exponentials."""
        most_X = logits_XV.max(-1)
        if self.axis is not None:
            most_X = lax.pmax(most_X, self.axis)
        most_X = jnp.where(jnp.isfinite(most_X), most_X, 0)
        sum_X = jnp.exp(logits_XV - most_X[:, None]).sum(-1)
        return most_X + jnp.log(self._add_parts(sum_X))

    def _find_best(self, logits_XV: jax.Array) -> jax.Array:
        """The token of the largest logit of all parts, the first of several."""
        best_X = logits_XV.argmax(-1)
        if self.axis is None:
            return best_X
        most_X = logits_XV.max(-1)
        best_X += self._first
        best_X = jnp.where(most_X == lax.pmax(most_X, self.axis), best_X, self.vocab_size)
        return lax.pmin(best_X, self.axis)

    def _add_parts(self, x: jax.Array) -> jax.Array:
        return x if self.axis is None else lax.psum(x, self.axis)


def multiply(a: jax.Array, b: jax.Array, over: tuple) -> jax.Array:
    """A product over these dimensions, in float32."""
    return lax.dot_general(a, b, (over, ((), ())), preferred_element_type=jnp.float32)
