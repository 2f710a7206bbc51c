"""Soft mixtures of experts: every slot takes a weighted mean of all tokens of its group."""

import jax
import jax.numpy as jnp

from moejax.routing.contract import RouterInput, SoftChoice


def choose(inputs: RouterInput) -> SoftChoice:
    """Mix tokens into slots and slots into tokens (Puigcerver et al. 2023, Eq. 1 and 2).

    dispatch: softmax of ``logits_GSEC`` over the tokens, padding left out. combine: softmax over
    all slots. Nothing is dropped and nothing is discrete.
    """
    logits_GSEC = inputs.logits_GSEC
    assert logits_GSEC is not None  # the layer gives it to a router with slots
    real_GS11 = inputs.real_GS[..., None, None]
    # A group of nothing but padding has no softmax: its slots stay empty.
    dispatch_GSEC = jax.nn.softmax(
        logits_GSEC, axis=1, where=real_GS11 | ~real_GS11.any(1, keepdims=True)
    )
    G, S, E, C = logits_GSEC.shape
    combine_GSEC = jax.nn.softmax(logits_GSEC.reshape(G, S, E * C)).reshape(G, S, E, C)
    combine_GSEC = jnp.where(real_GS11, combine_GSEC, 0)
    return SoftChoice(jnp.where(real_GS11, dispatch_GSEC, 0), combine_GSEC, combine_GSEC.sum(-1))
