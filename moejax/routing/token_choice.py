"""Token choice: every token picks its experts. One algebra; a named router is a preset of it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class TokenChoiceRule:
    """How logits become choices and weights. The presets below name the published ones."""

    top_k: int
    """Experts that a token chooses (K)."""
    renormalise: bool
    """Divide the chosen weights by their sum."""


PRESETS = {
    # Fedus et al. 2021, Eq. 2: one expert, weighted by its probability.
    "switch": {"renormalise": False},
    # Jiang et al. 2024 (Mixtral), section 2.1: the K largest, their weights summing to 1.
    "top_k": {"renormalise": True},
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenChoice:
    """What the tokens chose, before any capacity."""

    expert_GSK: jax.Array
    """The chosen experts, best first (int32)."""
    weight_GSK: jax.Array
    """The weight of each choice in the layer's output (float32)."""
    probability_GSE: jax.Array
    """The router's probabilities over all experts (float32)."""


def preset(name: str, top_k: int) -> TokenChoiceRule:
    """The rule of a named router, for ``top_k`` experts a token."""
    return TokenChoiceRule(top_k=top_k, **PRESETS[name])


def choose(logits_GSE: jax.Array, rule: TokenChoiceRule) -> TokenChoice:
    """Choose the ``rule.top_k`` most probable experts of every token; ties go to the lower index.

    ``logits_GSE`` are float32. Probabilities are their softmax (Shazeer et al. 2017, Eq. 3-5; Fedus
    et al. 2021, Eq. 1). Gradients reach the logits through the weights, never through the choice.
    """
    probability_GSE = jax.nn.softmax(logits_GSE)
    experts, weights = [], []
    # K rounds of argmax: lax.top_k would gather the scores of all devices (and K is small).
    left_GSE = jax.lax.stop_gradient(probability_GSE)
    for _ in range(rule.top_k):
        expert_GS = jnp.argmax(left_GSE, axis=-1)
        chosen_GSE = expert_GS[..., None] == jnp.arange(logits_GSE.shape[-1])
        # A masked sum, not a gather: its gradient is a product, not a scatter.
        weights.append(jnp.where(chosen_GSE, probability_GSE, 0).sum(-1))
        experts.append(expert_GS)
        left_GSE = jnp.where(chosen_GSE, -1.0, left_GSE)
    weight_GSK = jnp.stack(weights, axis=-1)
    if rule.renormalise:
        weight_GSK /= weight_GSK.sum(-1, keepdims=True)
    expert_GSK = jnp.stack(experts, axis=-1).astype(jnp.int32)
    return TokenChoice(expert_GSK, weight_GSK, probability_GSE)
