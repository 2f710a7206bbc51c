"""A function of a bank and of tokens, run by each device on its own part of both."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from moejax.moe.adapted import map_parts
from moejax.moe.quantise_params import spread
from moejax.moe.trained_bank import join_bank, part_bank
from moejax.moe.travel import Travel
from moejax.runtime.partition import TOKENS, parameter_spec


def run_on_each_device(
    function: Callable, params: dict[str, Any], *arrays: object, travel: Travel
) -> tuple:
    """``function(params, *arrays, travel) -> (y, more)`` on each device's own groups of tokens.

    ``arrays`` and results have a leading G; ``params`` is a device's part of a bank of experts,
    and ``y`` what this part of the hidden width adds to the sum: those of the ``model`` axis are
    added up here. Tokens come in ``chunks`` parts, one after another in the program, though
    not in time: none waits for another. Without a mesh, or on one device, the function itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(params, *arrays, travel)
    layout = travel.layout
    bank = own, stacks, layer = part_bank(params)
    specs = find_specs(own, layout.fsdp)
    of_stacks = find_specs(stacks, layout.fsdp, *[None] * (layer is not None))

    def gather(w: jax.Array, spec: P) -> jax.Array:
        for dimension, axis in enumerate(spec):
            if isinstance(axis, tuple) and "data" in axis:
                w = jax.lax.all_gather(w, axis, axis=dimension, tiled=True)
        return w

    def run(bank: tuple, *arrays: object) -> tuple:
        own, stacks, layer = bank
        own = jax.tree.map(gather, own, specs)
        params = join_bank(own, stacks, layer)
        cut = [
            jax.tree.map(lambda x, i=i: _take_part(x, i, layout.chunks), arrays)
            for i in range(layout.chunks)
        ]
        parts = [function(params, *part, travel) for part in cut]
        y, more = jax.tree.map(lambda *p: jax.numpy.concatenate(p), *parts)
        return y[None], more

    tokens = P(TOKENS)
    # Kernels say nothing of which axes their results vary over, hence no check.
    mapped = jax.shard_map(
        run,
        in_specs=((specs, of_stacks, P()), *[tokens] * len(arrays)),
        out_specs=(P("model", TOKENS), tokens),
        check_vma=False,
    )
    y, more = mapped(bank, *arrays)
    return y.sum(0), more


def find_specs(params: dict[str, Any], fsdp: bool, *leading: None) -> dict[str, Any]:
    """How the arrays of a bank lie, in stacks behind ``leading`` dimensions; of what is quantised,
    codes and scales lie in a way of their own.
    """

    def find(name: str, w: Any) -> Any:
        return spread(w, P(*leading, *parameter_spec(name, fsdp)))

    return {name: map_parts(find, name, w) for name, w in params.items()}


def _take_part(x: jax.Array, i: int, parts: int) -> jax.Array:
    size = x.shape[0] // parts
    return x[i * size : (i + 1) * size]
