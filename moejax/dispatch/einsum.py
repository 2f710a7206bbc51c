"""Dispatch by the one-hot tensors of GShard and Switch: the reference for every other form."""

import jax
import jax.numpy as jnp

from moejax import experts, mesh
from moejax.products import product
from moejax.routing.seating import seat
from moejax.routing.token_choice import TokenChoice


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
    dispatch_GSR = sum(one_hot_GSKR[:, :, k] for k in range(K)) > 0
    combine_GSR = sum(
        jnp.where(one_hot_GSKR[:, :, k], choice.weight_GSK[:, :, k, None], 0) for k in range(K)
    )
    shape = (*choice.expert_GSK.shape[:2], num_experts, capacity)
    return dispatch_GSR.reshape(shape), combine_GSR.reshape(shape)


def route(
    params: dict[str, jax.Array],
    x_GSD: jax.Array,
    choice: TokenChoice,
    real_GS: jax.Array,
    *,
    activation: str,
    capacity: int,
) -> tuple[jax.Array, jax.Array]:
    """Send tokens to the experts they chose and add up what comes back.

    ``params`` is the bank (see ``experts.bank``), ``real_GS`` is False at padding, ``capacity`` the
    slots of one expert in one group. Returns ``y_GSD``, zero for a token all of whose choices were
    dropped, and ``seated_GSK``, which choices got a slot.

    Both ends of both moves are pinned to the mesh: with one end free, XLA inserts all-gathers.
    """
    num_experts = params["w_down_EFD"].shape[0]
    slot_GSK = seat(choice.expert_GSK, real_GS, num_experts, capacity)
    dispatch_GSEC, combine_GSEC = dispatch_combine(choice, slot_GSK, num_experts, capacity)
    G, S, D = x_GSD.shape
    slots = (G, num_experts, capacity, D)

    # einsum("GSEC,GSD->EGCD") and back, as products over flat slots R = E * C.
    dispatch_GRS = dispatch_GSEC.reshape(G, S, -1).swapaxes(1, 2).astype(x_GSD.dtype)
    x_GRD = product(dispatch_GRS, mesh.pin(x_GSD, "tokens_GSD"))
    x_EGCD = mesh.pin(x_GRD.reshape(slots).swapaxes(0, 1), "slots_EGCD")
    y_EGCD = mesh.pin(experts.bank(params, x_EGCD, activation), "slots_EGCD")
    # The weights were chosen in float32; the product runs in the type of the activations.
    combine_GSR = combine_GSEC.reshape(G, S, -1).astype(y_EGCD.dtype)
    y_GSD = product(combine_GSR, y_EGCD.swapaxes(0, 1).reshape(G, -1, D))
    return mesh.pin(y_GSD, "tokens_GSD"), slot_GSK >= 0
