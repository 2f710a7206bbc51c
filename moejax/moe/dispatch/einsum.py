"""Dispatch by the one-hot tensors of GShard and Switch: the reference for every other form."""

import jax
import jax.numpy as jnp

from moejax.moe.dispatch import slots
from moejax.moe.kernels.product import product
from moejax.moe.travel import Travel
from moejax.routing.contract import Choice, ExpertChoice, SoftChoice, TokenChoice, spread
from moejax.routing.seating import Seating, seat_choices
from moejax.runtime import partition


def dispatch_combine(
    choice: TokenChoice, slot_GSK: jax.Array, num_experts: int, capacity: int
) -> tuple[jax.Array, jax.Array]:
    """The one-hot ``dispatch_GSEC`` (bool) and the weighted ``combine_GSEC`` (float32).

    Lepikhin et al. 2020, Algorithm 2; a dropped choice (slot -1) is all zeros in both.
    """
    seated_GSK = slot_GSK >= 0
    place_GSK = jnp.where(seated_GSK, choice.expert_GSK * capacity + slot_GSK, -1)
    one_hot_GSKR = place_GSK[..., None] == jnp.arange(num_experts * capacity)
    # A sum over the few choices, unrolled: XLA fuses the comparisons instead of storing K of them.
    K = choice.expert_GSK.shape[-1]
    dispatch_GSR = jnp.asarray(sum(one_hot_GSKR[:, :, k] for k in range(K))) > 0
    combine_GSR = jnp.asarray(
        sum(jnp.where(one_hot_GSKR[:, :, k], choice.weight_GSK[:, :, k, None], 0) for k in range(K))
    )
    shape = (*choice.expert_GSK.shape[:2], num_experts, capacity)
    return dispatch_GSR.reshape(shape), combine_GSR.reshape(shape)


def tensors(
    choice: Choice, real_GS: jax.Array, num_experts: int, capacity: int, seating: Seating
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Any choice as ``dispatch_GSEC``, ``combine_GSEC``, and ``seated_GSE``: what each token got of
    each expert (1 for a slot; of a soft choice, the mass in its slots).
    """
    if isinstance(choice, SoftChoice):
        seated_GSE = jax.lax.stop_gradient(choice.dispatch_GSEC.sum(-1))
        return choice.dispatch_GSEC, choice.combine_GSEC, seated_GSE
    if isinstance(choice, ExpertChoice):
        token_G1EC = choice.token_GEC[:, None]
        dispatch_GSEC = token_G1EC == jnp.arange(real_GS.shape[1])[:, None, None]
        combine_GSEC = jnp.where(dispatch_GSEC, choice.weight_GEC[:, None], 0)
        return dispatch_GSEC, combine_GSEC, dispatch_GSEC.sum(-1, dtype=jnp.float32)
    slot_GSK = seat_choices(choice, real_GS, num_experts, capacity, seating)
    dispatch_GSEC, combine_GSEC = dispatch_combine(choice, slot_GSK, num_experts, capacity)
    if choice.weigh == "input":  # what an expert gets is weighted, not what it gives
        dispatch_GSEC, combine_GSEC = combine_GSEC, dispatch_GSEC
    seated_GSE = spread(choice.expert_GSK, (slot_GSK >= 0).astype(jnp.float32), num_experts)
    return dispatch_GSEC, combine_GSEC, seated_GSE


def route(
    params: dict[str, jax.Array],
    x_GSD: jax.Array,
    choice: Choice,
    real_GS: jax.Array,
    travel: Travel,
) -> tuple[jax.Array, jax.Array]:
    """Send tokens to the experts they chose and add up what comes back.

    ``params`` is the bank (see ``experts.bank``), ``real_GS`` is False at padding. Choices outside
    the bank (-1, zero-computation experts) are passed over. Returns ``y_GSD``, zero for a token all
    of whose choices were dropped, and ``seated_GSE``, what each token got of each expert of the
    bank.
    """
    num_experts = params["w_down_EFD"].shape[0]
    dispatch_GSEC, combine_GSEC, seated_GSE = tensors(
        choice, real_GS, num_experts, travel.capacity, travel.seating
    )
    G, S, D = x_GSD.shape

    # einsum("GSEC,GSD->EGCD") and back, as products over flat slots R = E * C.
    dispatch_GRS = dispatch_GSEC.reshape(G, S, -1).swapaxes(1, 2).astype(x_GSD.dtype)
    y_GRD = slots.compute(params, product(dispatch_GRS, x_GSD), travel)
    # The weights were chosen in float32; the product runs in the type of the activations.
    combine_GSR = combine_GSEC.reshape(G, S, -1).astype(y_GRD.dtype)
    y_GSD = product(combine_GSR, y_GRD)
    return partition.pin(y_GSD, "tokens_GSD"), seated_GSE
