"""Which form of dispatch `auto` takes. All give the same; docs/benchmarks.md has the measurements
that this rule follows, and says which of them are still missing.
"""

import jax

from moejax.config.moe import MoEConfig
from moejax.moe.kernels import feed_forward as kernels
from moejax.runtime import device_mesh

TILE = 128
"""Rows of a tile of the grouped products on accelerators: on average half a tile at both ends of an
expert's rows is computed in vain."""
SMALL = 256 * 256
"""With fewer numbers than this in an expert's matrix, the loop for CPUs spends its time between the
products: as much of it as slots take that are ..."""
SPARE = 1.5
"""... so many times as many as the choices."""


def form_of(moe: MoEConfig, params: dict[str, jax.Array], x_GSD: jax.Array, capacity: int) -> str:
    """The form for a layer with this bank (see ``experts.bank``), input, and slots an expert."""
    G, S, D = x_GSD.shape
    E, F = params["w_down_EFD"].shape[:2]
    router, platform = moe.built_router, device_mesh.platform()
    slotted = slotted_form(moe, params, x_GSD)
    if router.slots or router.experts_choose or moe.expert_dropout:
        return slotted
    if capacity >= S:  # room for all: most slots are empty
        return "grouped"
    if device_mesh.expert_devices() > 1:  # XLA moves slots by itself
        return slotted
    padding = capacity * E / (S * moe.top_k)
    if platform == "cpu":
        return "grouped" if D * F >= SMALL or padding > SPARE else slotted
    if kernels.products_of(platform, params, x_GSD) is None:
        return slotted
    rows = G * S * moe.top_k / device_mesh.token_devices()
    in_slots = padding * (1 + 2 * S / (3 * F)) if slotted == "einsum" else padding
    return "grouped" if 1 + TILE * (E - 1) / rows <= in_slots else slotted


def slotted_form(moe: MoEConfig, params: dict[str, jax.Array], x_GSD: jax.Array) -> str:
    """The better of the forms with slots, for the same."""
    S, F = x_GSD.shape[1], params["w_down_EFD"].shape[1]
    if moe.built_router.slots:
        return "einsum"
    # Moving one row moves a tile of eight on TPUs; einsum computes 2S / 3F of what experts compute.
    return "einsum" if device_mesh.platform() == "tpu" and 4 * S <= 3 * F else "gather"
