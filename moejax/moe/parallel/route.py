"""Experts across devices: four forms with one signature and one meaning."""

from collections.abc import Callable
from functools import partial

import jax

from moejax.config.mesh import BY_ROWS, MeshConfig
from moejax.config.moe import MoEConfig
from moejax.moe.dispatch import einsum, gather, slots
from moejax.moe.dispatch.automatic import form_of, slotted_form
from moejax.moe.parallel import all_to_all, by_rows
from moejax.runtime import device_mesh

SLOTS = {"einsum": einsum.route, "gather": gather.route}


def route_of(
    moe: MoEConfig,
    layout: MeshConfig,
    params: dict[str, jax.Array],
    x_GSD: jax.Array,
    capacity: int,
) -> Callable:
    """The route (see ``einsum.route``) that settings name, or that suits this bank and input."""
    dispatch, form = forms_of(moe, layout, params, x_GSD, capacity)
    if dispatch == "grouped":
        return partial(by_rows.route, form=form, layout=layout)
    compute = partial(slots.compute, fsdp=layout.fsdp)
    if form == "all_to_all" and device_mesh.expert_devices() > 1:
        compute = partial(all_to_all.compute, layout=layout)
    return partial(SLOTS[dispatch], compute=compute)


def forms_of(
    moe: MoEConfig,
    layout: MeshConfig,
    params: dict[str, jax.Array],
    x_GSD: jax.Array,
    capacity: int,
) -> tuple[str, str]:
    """The form of dispatch and of expert parallelism, for arrays or their shapes.

    Rows that an ``auto`` layout has no slots for are gathered where that moves less than sending
    them: while the expert axis has no more devices than a token has choices.
    """
    dispatch, form = moe.dispatch, layout.expert_parallel
    if form in BY_ROWS:
        return "grouped", form
    if dispatch == "auto" and form == "all_to_all":
        dispatch = slotted_form(moe, params, x_GSD)
    elif dispatch == "auto":
        dispatch = form_of(moe, params, x_GSD, capacity)
    if dispatch == "grouped":
        few = device_mesh.expert_devices() <= moe.top_k or device_mesh.platform() == "cpu"
        form = "all_gather" if few else "ragged"
    return dispatch, form
