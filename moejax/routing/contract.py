"""What a router is given and what it answers: one input, three shapes of answer.

A router is a pure function ``RouterInput -> TokenChoice | ExpertChoice | SoftChoice``. In these
arrays E counts everything that a router can choose, zero-computation experts included; those come
last.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How sequences lie in groups: those of all first pieces come first (``runtime.pieces``)."""

    pieces: int = 1
    sequences: int = 1

    def draw(self, sample: Callable, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Random numbers ``sample(key, shape)``, of this shape [G, ...]: for each token those that
        it gets where its sequence lies in one piece.
        """
        if self.pieces == 1:
            return sample(key, shape)
        groups = shape[0] // self.pieces // self.sequences
        drawn = sample(key, (self.sequences, self.pieces, groups, *shape[1:]))
        return drawn.swapaxes(0, 1).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class RouterInput:
    """All that a router may look at. Arrays are float32 unless said otherwise."""

    logits_GSE: jax.Array
    """One number for each token and expert, larger is better; finite. Zero for routers without
    parameters; for soft routers the log-sum-exp over an expert's slots."""
    real_GS: jax.Array
    """False (bool) at padding: such a token must not change what others get."""
    top_k: int
    """Experts that a token chooses (K), or gets on average."""
    capacity: int
    """Slots of an expert in a group (C)."""
    training: bool = False
    key: jax.Array | None = None
    """Randomness, in training alone; ``None`` must give a deterministic answer."""
    bias_E: jax.Array | None = None
    """Selection bias of the loss-free balance: it may change the choice, never the weights."""
    noise_GSE: jax.Array | None = None
    """Learned scale of the noise, before its softplus (rules with noise ``learned``)."""
    logits_GSEC: jax.Array | None = None
    """One number for each token and slot (routers with ``slots``)."""
    token_GS: jax.Array | None = None
    """Ids of the tokens (int32), where the model has such."""
    by_id: jax.Array | None = None
    """Whether this layer goes by the ids of tokens (bool), where only some layers do."""
    rows: Rows = Rows()
    """Random numbers are drawn by ``rows.draw``."""
    replayed_GSK: jax.Array | None = None
    """Recorded choices, to be taken in the place of the router's own (int32), -1 for no expert
    (routers that say ``replays``). Weights and statistics are those of the logits, as always."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenChoice:
    """Every token names its experts, before any capacity."""

    expert_GSK: jax.Array
    """The chosen experts, best first (int32), no expert twice; -1 for no expert, which takes no
    slot and is in no count."""
    weight_GSK: jax.Array
    """The weight of each choice in the layer's output (float32)."""
    probability_GSE: jax.Array
    """The router's distribution over all experts (float32), for losses and metrics."""
    unbiased_GSK: jax.Array | None = None
    """Under a selection bias, what would have been chosen without it (and without groups)."""
    smooth_load_GSE: jax.Array | None = None
    """The probability of being chosen under new noise (Shazeer et al. 2017, Eq. 9)."""
    weigh: Literal["output", "input"] = field(default="output", metadata={"static": True})
    """Whether the weight multiplies what an expert gives, or what it gets."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExpertChoice:
    """Every expert names the tokens in its slots."""

    token_GEC: jax.Array
    """The token in each slot (int32), -1 for an empty slot."""
    weight_GEC: jax.Array
    """The weight of each slot in its token's output (float32)."""
    probability_GSE: jax.Array
    """The router's distribution over experts (float32)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SoftChoice:
    """Every slot holds a mixture of tokens, every token gets a mixture of slots."""

    dispatch_GSEC: jax.Array
    """The share of each token in each slot (float32)."""
    combine_GSEC: jax.Array
    """The weight of each slot in each token's output (float32)."""
    probability_GSE: jax.Array
    """The weight of all slots of an expert (float32)."""


Choice = TokenChoice | ExpertChoice | SoftChoice


def spread(expert_GSK: jax.Array, value_GSK: jax.Array, num_experts: int) -> jax.Array:
    """Lay one value per choice out over the experts: [G, S, E], 0 where there is no choice."""
    # One expert comparison per choice, unrolled: XLA fuses them instead of storing [G, S, K, E].
    first_GSE, *others = (
        jnp.where(expert_GSK[..., k, None] == jnp.arange(num_experts), value_GSK[..., k, None], 0.0)
        for k in range(expert_GSK.shape[-1])
    )
    return sum(others, first_GSE)


def asked(choice: Choice, real_GS: jax.Array) -> jax.Array:
    """Which experts each token asked for, before capacity: ``asked_GSE`` (float32), 0 at padding.

    1 for a choice. Of a soft choice, the mass that its slots take from the token.
    """
    E = choice.probability_GSE.shape[-1]
    if isinstance(choice, TokenChoice):
        asked_GSE = spread(choice.expert_GSK, jnp.ones_like(choice.weight_GSK), E)
    elif isinstance(choice, ExpertChoice):
        asked_GSE = _over_tokens(choice.token_GEC, jnp.ones_like(choice.weight_GEC), real_GS)
    else:
        asked_GSE = jax.lax.stop_gradient(choice.dispatch_GSEC.sum(-1))
    return jnp.where(real_GS[..., None], asked_GSE, 0.0)


def in_order(choice: Choice, real_GS: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """The experts of each token in the order of choice, ``expert_GSK`` (int32), -1 for none and at
    padding, and their weights, ``weight_GSK``, 0 there; None where tokens do not choose.
    """
    if not isinstance(choice, TokenChoice):
        return None
    expert_GSK = jnp.where(real_GS[..., None], choice.expert_GSK, -1)
    # Told, not learned from: so no gradient.
    weight_GSK = jax.lax.stop_gradient(choice.weight_GSK)
    return expert_GSK, jnp.where(expert_GSK >= 0, weight_GSK, 0)


def weight(choice: Choice, real_GS: jax.Array) -> jax.Array:
    """The weight that each token gives each expert, before capacity: ``weight_GSE`` (float32)."""
    E = choice.probability_GSE.shape[-1]
    if isinstance(choice, TokenChoice):
        weight_GSE = spread(choice.expert_GSK, choice.weight_GSK, E)
    elif isinstance(choice, ExpertChoice):
        weight_GSE = _over_tokens(choice.token_GEC, choice.weight_GEC, real_GS)
    else:
        weight_GSE = choice.combine_GSEC.sum(-1)
    return jnp.where(real_GS[..., None], weight_GSE, 0.0)


def _over_tokens(token_GEC: jax.Array, value_GEC: jax.Array, real_GS: jax.Array) -> jax.Array:
    """Lay one value per slot out over the tokens: [G, S, E]."""
    one_hot_GSEC = token_GEC[:, None] == jnp.arange(real_GS.shape[1])[:, None, None]
    return jnp.where(one_hot_GSEC, value_GEC[:, None], 0.0).sum(-1)
