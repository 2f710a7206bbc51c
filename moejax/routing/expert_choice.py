"""Expert choice: every expert picks the tokens of its group that it wants most."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moejax.routing.contract import ExpertChoice, RouterInput


@dataclass(frozen=True, kw_only=True)
class ExpertChoiceRule:
    """How experts pick tokens (Zhou et al. 2022)."""

    max_experts_per_token: int | None = None
    """No token gets more experts than this; by default any number."""
    iterations: int = 1000
    """Rounds of the capped assignment at most; it ends when every expert has C tokens."""
    temperature: float = 0.01
    """Weight of the entropy in the capped assignment: smaller is sharper, and slower to settle."""


def choose(inputs: RouterInput, rule: ExpertChoiceRule) -> ExpertChoice:
    """Give each expert the C tokens that score it highest, of a softmax over experts.

    Zhou et al. 2022, section 3.2: S = softmax(x W), G, I = top-k of S transposed. Equal scores go
    to the earlier token; padding is never chosen. Under a cap (section 3.3, Eq. 3) the tokens are
    picked from the capped assignment, and a token that would still get more experts than the cap
    keeps those that the assignment gives most of it: the paper leaves such a token with too many.
    """
    probability_GSE = jax.nn.softmax(inputs.logits_GSE)
    wanted_GSE = jax.lax.stop_gradient(probability_GSE)
    if rule.max_experts_per_token is not None:
        wanted_GSE = capped_assignment(wanted_GSE, inputs.real_GS, inputs.capacity, rule)
    wanted_GES = jnp.where(inputs.real_GS[..., None], wanted_GSE, -1.0).swapaxes(1, 2)
    # A sort, not lax.top_k, which would gather the scores of all devices.
    token_GEC = jnp.argsort(-wanted_GES, axis=-1)[..., : inputs.capacity].astype(jnp.int32)
    real_GEC = jnp.take_along_axis(wanted_GES, token_GEC, axis=-1) >= 0
    token_GEC = jnp.where(real_GEC, token_GEC, -1)
    if rule.max_experts_per_token is not None:
        token_GEC = keep_best(token_GEC, wanted_GSE, rule.max_experts_per_token)
    one_hot_GECS = token_GEC[..., None] == jnp.arange(wanted_GES.shape[-1])
    weight_GEC = jnp.where(one_hot_GECS, probability_GSE.swapaxes(1, 2)[:, :, None], 0).sum(-1)
    return ExpertChoice(token_GEC, weight_GEC, probability_GSE)


Plan = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""The logarithm of the assignment, the corrections of two of its sets, and the rounds so far."""


def capped_assignment(
    score_GSE: jax.Array, real_GS: jax.Array, capacity: int, rule: ExpertChoiceRule
) -> jax.Array:
    """The assignment A in [0, 1] that maximises <S, A> + temperature * entropy(A) with C tokens an
    expert and at most ``max_experts_per_token`` experts a token (Zhou et al. 2022, Eq. 3).

    By Dykstra's alternating projections onto the three sets, in logarithms. Shapes [G, S, E].
    """
    tokens_G11 = real_GS.sum(1, dtype=jnp.float32)[:, None, None]
    log_C = jnp.log(jnp.minimum(capacity, jnp.maximum(tokens_G11, 1)))
    assert rule.max_experts_per_token is not None
    log_cap = jnp.log(float(rule.max_experts_per_token))
    real_GS1 = real_GS[..., None]

    def unsettled(carry: Plan) -> jax.Array:
        log_GSE, _, _, rounds = carry
        mass_G1E = jax.nn.logsumexp(log_GSE, axis=1, keepdims=True, where=real_GS1)
        off = jnp.where(tokens_G11 > 0, jnp.abs(mass_G1E - log_C), 0).max()
        return (rounds == 0) | ((off > 1e-4) & (rounds < rule.iterations))

    def project(carry: Plan) -> Plan:
        log_GSE, below_one_GSE, cap_GS1, rounds = carry
        # Experts: exactly C tokens. An affine set needs no correction.
        log_GSE += log_C - jax.nn.logsumexp(log_GSE, axis=1, keepdims=True, where=real_GS1)
        # Tokens: at most the cap, undoing the last such correction first.
        open_GSE = log_GSE + cap_GS1
        over_GS1 = jax.nn.logsumexp(open_GSE, axis=2, keepdims=True) - log_cap
        cap_GS1 = jnp.maximum(over_GS1, 0)
        log_GSE = open_GSE - cap_GS1
        # Entries: at most 1.
        open_GSE = log_GSE + below_one_GSE
        below_one_GSE = jnp.maximum(open_GSE, 0)
        return open_GSE - below_one_GSE, below_one_GSE, cap_GS1, rounds + 1

    start_GSE = score_GSE / rule.temperature
    zeros = jnp.zeros_like(start_GSE), jnp.zeros_like(start_GSE[..., :1])
    start = (start_GSE, *zeros, jnp.zeros((), jnp.int32))
    return jnp.exp(jax.lax.while_loop(unsettled, project, start)[0])


def keep_best(token_GEC: jax.Array, wanted_GSE: jax.Array, limit: int) -> jax.Array:
    """Empty the slots of every token beyond its ``limit`` most wanted; ties to the lower expert."""
    S, E = wanted_GSE.shape[1:]
    held_GECS = token_GEC[..., None] == jnp.arange(S)
    held_GSE = held_GECS.any(2).swapaxes(1, 2)
    order_GSE = jnp.argsort(jnp.where(held_GSE, -wanted_GSE, jnp.inf), axis=-1)
    rank_GSE = jnp.argsort(order_GSE, axis=-1)
    stays_GES = (rank_GSE < limit).swapaxes(1, 2)
    return jnp.where((held_GECS & stays_GES[:, :, None]).any(-1), token_GEC, -1)
