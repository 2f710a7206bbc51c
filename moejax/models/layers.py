"""The layers that all models are made of: attention, and feed-forward networks, routed or not.

Letters: M: positions that are looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.models.attention import Attention
from moejax.models.context import Context
from moejax.models.gated_delta import GatedDelta
from moejax.models.kv_cache import Cache
from moejax.models.latent_attention import LatentAttention
from moejax.models.layer_runs import (
    LayerKind,
    cut_layers,
    name_block,
    name_run,
    number_in_cache,
)
from moejax.models.norm import make_norm
from moejax.models.recompute import LAYER_INPUT, recompute
from moejax.models.rotary import number_rotations
from moejax.moe import lying
from moejax.moe.balance import Routed
from moejax.moe.experts import take_bank
from moejax.moe.layer import FeedForward, MoELayer
from moejax.moe.lying import Lying, lie_at
from moejax.moe.quantised import is_quantised
from moejax.moe.trained_bank import cast_stacks, reads_stacks
from moejax.runtime import device_mesh, partition

Own = dict[str, jax.Array]
"""What a layer has for itself."""


class Block(nn.Module):
    """Attention (which an ``mlp`` has not) or a memory, and a feed-forward network, each on a copy
    of the residual stream; that is normalised, or what they give, or both.
    """

    config: ModelConfig
    layout: MeshConfig
    layer_kind: LayerKind
    training: bool

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, cache: Cache, context: Context, each: Own, own: Own
    ) -> tuple[jax.Array, Cache, Routed | None]:
        x_BND = checkpoint_name(x_BND, LAYER_INPUT)
        if self.config.kind != "mlp":
            x_BND, cache = self._attend(x_BND, cache, context, each)
        x_BND, said = self._feed_forward(x_BND, context, each, own)
        return x_BND, cache, said

    def _feed_forward(
        self, x_BND: jax.Array, context: Context, each: Own, own: Own
    ) -> tuple[jax.Array, Routed | None]:
        config = self.config
        normed_BND = self._norm_input("feed_forward", x_BND)
        if not self.layer_kind.routed:
            width, name = config.dense_hidden, "feed_forward"
            dense = FeedForward(width, config.activation, self.layout, name=name)
            return self._add(x_BND, self._norm_output(name, dense(normed_BND))), None
        layer = MoELayer(config.moe, config.activation, self.layout, name="moe")
        stacks = context.get("stacks", {}).get(str(self.name))
        by_id = {"by_id": each["by_id"]} if "by_id" in each else {}
        y_BND, stats, chosen_BNE, ordered = layer.run(
            normed_BND,
            context["real_BN"],
            training=self.training,
            token_BN=context["token_BN"],
            stacked=None if stacks is None else lie_at(stacks, each["repeat"]),
            **by_id,
            **own,
        )
        y_BND = self._norm_output("feed_forward", y_BND)
        return self._add(x_BND, y_BND), Routed(stats, chosen_BNE, *(ordered or ()))

    def _attend(
        self, x_BND: jax.Array, cache: Cache, context: Context, each: Own
    ) -> tuple[jax.Array, Cache]:
        config = self.config
        normed_BND = self._norm_input("attention", x_BND)
        if "near" in each:
            context = context | {"seen": replace(context["seen"], near=each["near"])}
        if "rotation" in each:
            own = each["rotation"]
            context = context | {"cos": context["cos"][own], "sin": context["sin"][own]}
        attending: type[Attention] | type[LatentAttention] | type[GatedDelta]
        attending = LatentAttention if config.is_latent else Attention
        form, name = (GatedDelta, "delta") if self.layer_kind.delta else (attending, "attention")
        y_BND, cache = form(config, self.layout, name=name)(
            normed_BND, context, cache, each["layer"]
        )
        y_BND = checkpoint_name(y_BND, "attention_output")
        return self._add(x_BND, self._norm_output("attention", y_BND)), cache

    def _norm_input(self, part: str, x_BND: jax.Array) -> jax.Array:
        """What a part of the layer reads."""
        if self.config.norm_place == "post":
            return x_BND
        return make_norm(self.config, f"{part}_norm")(x_BND)

    def _norm_output(self, part: str, y_BND: jax.Array) -> jax.Array:
        """What a part of the layer gives."""
        place = self.config.norm_place
        experts = place == "pre_and_experts" and self.layer_kind.routed and part == "feed_forward"
        if place not in ("post", "sandwich") and not experts:
            return y_BND
        return make_norm(self.config, f"{part}_output_norm")(y_BND)

    def _add(self, x_BND: jax.Array, y_BND: jax.Array) -> jax.Array:
        scale = self.config.residual_scale
        return partition.pin(x_BND + (y_BND if scale == 1 else y_BND * scale), "tokens_BND")


class Unit(nn.Module):
    """The blocks that one step of the scan runs; what the routed ones say is stacked."""

    config: ModelConfig
    layout: MeshConfig
    kinds: tuple[LayerKind, ...]
    training: bool
    in_loop: bool

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, Cache], context: Context, each: Own, own: Own
    ) -> tuple[tuple[jax.Array, Cache], Any]:
        """``each`` has a number for each block, ``own`` arrays for each routed one."""
        x_BND, cache = carry
        block = recompute(Block, self.config, self.in_loop)
        said: list[Routed | None] = []
        for i, kind in enumerate(self.kinds):
            of_layer = {name: x[len(said)] for name, x in own.items()} if kind.routed else {}
            of_block = {name: x[i] for name, x in each.items()}
            layer = block(self.config, self.layout, kind, self.training, name=name_block(i))
            x_BND, cache, one = layer(x_BND, cache, context, of_block, of_layer)
            said += [one] if kind.routed else []
        return (x_BND, cache), jax.tree.map(lambda *s: jnp.stack(s), *said) if said else None


def settings_of_layers(config: ModelConfig) -> dict[str, Sequence[int]]:
    """What the layers differ in beside their parameters, a number for each layer: whether
    they have the window, which of the model's rotary positions they have, and whether their router
    goes by the ids of tokens.
    """
    found: dict[str, Sequence[int]] = {}
    if len({kind for kind in config.attention_kinds if kind != "delta"}) > 1:
        found["near"] = [window is not None for window in config.windows]
    rotations, numbers = number_rotations(config)
    if len(rotations) > 1:
        found["rotation"] = numbers
    if any(config.routed_layers) and config.moe.hash_layers is not None:
        before = accumulate(config.routed_layers, initial=0)  # routed layers below each
        found["by_id"] = [n < config.moe.hash_layers for n in before][: config.num_layers]
    return found


def run_layers(
    config: ModelConfig,
    layout: MeshConfig,
    x_BND: jax.Array,
    context: Context,
    *,
    training: bool,
    own: Own,
    caches: Sequence[Cache] = (),
    params: Mapping[str, Any] | None = None,
    in_place: bool = False,
) -> tuple[jax.Array, Routed | None, list[Cache]]:
    """All layers of a model, as submodules of the one that calls: the residual stream, what the
    routed ones say, and the caches. ``own`` is what each routed layer has for itself, with a
    leading L. ``params`` are the model's parameters, once there are such: all are read where they
    lie ``in_place``, at inference, else the banks of experts.
    """
    unroll = unrolls(config, in_place)
    differing = settings_of_layers(config)
    said, layers, done, done_routed = [], [], 0, 0
    for i, run in enumerate(cut_layers(config)):
        unit, repeats = run.unit, run.repeats
        # Of this run: [repeats, layers of the unit, ...], or routed layers of the unit.
        count, count_routed = repeats * len(unit), repeats * run.routed
        each = {
            "layer": jnp.array(number_in_cache(run)),
            "repeat": jnp.arange(count) // len(unit),
        }
        each |= {name: jnp.array(x[done : done + count]) for name, x in differing.items()}
        each = {name: x.reshape(repeats, len(unit)) for name, x in each.items()}
        here = {
            name: x[done_routed : done_routed + count_routed].reshape(
                repeats, run.routed, *x.shape[1:]
            )
            for name, x in own.items()
            if count_routed
        }
        done, done_routed = done + count, done_routed + count_routed
        in_loop = repeats > 1 and not unroll
        cache = caches[i] if caches else {}
        if params is None or not in_place:
            scan = nn.scan(
                Unit,
                variable_axes={"params": 0},
                split_rngs={"params": True, "router": True},
                in_axes=(nn.broadcast, 0, 0),
                length=repeats,
                unroll=repeats if unroll else 1,
            )(config, layout, unit, training, in_loop, name=name_run(i))
            stacks = {} if params is None else stack_banks(params[name_run(i)], config, layout)
            with_stacks: Context = {**context, "stacks": stacks}
            (x_BND, cache), one = scan((x_BND, cache), with_stacks, each, here)
        else:
            alone = Unit(config, layout, unit, training, in_loop, parent=None)
            step = partial(run_in_place, alone, params[name_run(i)], context)
            numbered = (jnp.arange(repeats), each, here)
            (x_BND, cache), one = jax.lax.scan(
                step, (x_BND, cache), numbered, unroll=repeats if unroll else 1
            )
        layers.append(cache)
        if one is not None:  # [repeats, routed in the unit, ...] -> [routed layers, ...]
            said.append(jax.tree.map(lambda s: s.reshape(-1, *s.shape[2:]), one))
    if not said:
        return x_BND, None, layers
    return x_BND, jax.tree.map(lambda *s: jnp.concatenate(s), *said), layers


def stack_banks(
    params: dict[str, Any], config: ModelConfig, layout: MeshConfig
) -> dict[str, dict[str, jax.Array]]:
    """The stacks of a run's banks, by the name of the block, as its products read them in training;
    none where they do not.
    """
    if not reads_stacks(config.dtype, layout.fsdp):
        return {}
    return {
        block: cast_stacks(take_bank(p["moe"]), config.dtype)
        for block, p in params.items()
        if "moe" in p
    }


def run_in_place(
    unit: Unit,
    params: dict[str, Any],
    context: Context,
    carry: tuple[jax.Array, Cache],
    numbered: tuple[jax.Array, Own, Own],
) -> tuple[tuple[jax.Array, Cache], Any]:
    """One repeat of a unit with its parameters in their stacks: the body of a scan over repeats."""
    repeat, each, own = numbered
    return unit.apply({"params": lay_at(params, repeat)}, carry, context, each, own)


def lay_at(params: dict[str, Any], repeat: jax.Array) -> dict[str, Any]:
    """The parameters of one repeat in their stacks."""

    def lay(p: Any) -> Lying:
        return (p if isinstance(p, Lying) else Lying(p)).at_index(repeat)

    return jax.tree.map(lay, params, is_leaf=is_quantised)


def unrolls(config: ModelConfig, in_place: bool) -> bool:
    """Whether the loops over layers are unrolled."""
    if config.unroll is not None:
        return config.unroll
    # A large model's layers, read in place, would gain nothing but time to compile.
    large = in_place and config.width**2 >= lying.SMALL
    return device_mesh.platform() == "cpu" and not large
