"""The one place that decides how a layer's tokens travel: by which form of dispatch, and by which
form of expert parallelism. All give the same; docs/benchmarks.md has the measurements that the
choices follow, and says which of them are still missing.
"""

import jax

from moejax.config.mesh import BY_ROWS, MeshConfig
from moejax.config.moe import MoEConfig
from moejax.moe.dropout import Dropout
from moejax.moe.kernels.grouped_feed_forward import find_products
from moejax.moe.travel import Dispatch, Exchange, Travel
from moejax.runtime import device_mesh

TILE = 128
"""Rows of a tile of the grouped products on accelerators: on average half a tile at both ends of an
expert's rows is computed in vain."""
SMALL = 256 * 256
"""With fewer numbers than this in an expert's matrix, the loop for CPUs spends its time between the
products, and slots are better ..."""
SPARE = 1.5
"""... unless there are more than this many slots for each choice."""

Params = dict[str, jax.Array]


def choose_travel(
    moe: MoEConfig,
    layout: MeshConfig,
    params: Params,
    x_GSD: jax.Array,
    *,
    activation: str,
    capacity: int,
    dropout: Dropout | None = None,
) -> Travel:
    """How the tokens ``x_GSD`` meet this bank of experts (see ``experts.bank``) on the mesh in use.

    ``capacity`` is the number of slots of one expert in one group.
    """
    dispatch, exchange = choose_forms(moe, layout, params, x_GSD, capacity)
    return Travel(
        activation=activation,
        capacity=capacity,
        seating=moe.seating,
        dropout=dropout,
        dispatch=dispatch,
        exchange=exchange if device_mesh.expert_devices() > 1 else "auto",
        layout=layout,
    )


def choose_forms(
    moe: MoEConfig, layout: MeshConfig, params: Params, x_GSD: jax.Array, capacity: int
) -> tuple[Dispatch, Exchange]:
    """The form of dispatch and that of expert parallelism, for arrays or their shapes.

    Rows that an ``auto`` layout has no slots for are gathered where that moves less than sending
    them: while the expert axis has no more devices than a token has choices.
    """
    form = layout.expert_parallel
    if form in BY_ROWS:
        return "grouped", form
    dispatch = moe.dispatch
    if dispatch == "auto" and form == "all_to_all":
        dispatch = choose_slots(moe, params, x_GSD)
    elif dispatch == "auto":
        dispatch = choose_dispatch(moe, params, x_GSD, capacity)
    if dispatch == "grouped":
        few = device_mesh.expert_devices() <= moe.top_k or device_mesh.platform() == "cpu"
        form = "all_gather" if few else "ragged"
    return dispatch, form


def choose_dispatch(moe: MoEConfig, params: Params, x_GSD: jax.Array, capacity: int) -> Dispatch:
    """The form of dispatch that ``auto`` takes where nothing else decides."""
    G, S, D = x_GSD.shape
    E, F = params["w_down_EFD"].shape[:2]
    router, platform = moe.built_router, device_mesh.platform()
    slotted = choose_slots(moe, params, x_GSD)
    if router.slots or router.experts_choose or moe.expert_dropout:
        return slotted
    if capacity >= S:  # room for all: most slots are empty
        return "grouped"
    if device_mesh.expert_devices() > 1:  # XLA moves slots by itself
        return slotted
    padding = capacity * E / (S * moe.top_k)
    if platform == "cpu":
        return "grouped" if D * F >= SMALL or padding > SPARE else slotted
    if find_products(platform, params, x_GSD) is None:
        return slotted
    rows = G * S * moe.top_k / device_mesh.token_devices()
    in_slots = padding * (1 + 2 * S / (3 * F)) if slotted == "einsum" else padding
    return "grouped" if 1 + TILE * (E - 1) / rows <= in_slots else slotted


def choose_slots(moe: MoEConfig, params: Params, x_GSD: jax.Array) -> Dispatch:
    """The better of the two forms with slots."""
    S, F = x_GSD.shape[1], params["w_down_EFD"].shape[1]
    if moe.built_router.slots:
        return "einsum"
    # Moving one row moves a tile of eight on TPUs; einsum computes 2S / 3F of what experts compute.
    return "einsum" if device_mesh.platform() == "tpu" and 4 * S <= 3 * F else "gather"
