"""A decoder-only transformer language model with routed layers."""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax import mesh
from moejax.balance import RouterStats
from moejax.config import MeshConfig, ModelConfig
from moejax.layer import FeedForward, MoELayer, weight
from moejax.models.attention import Attention, Context, RMSNorm, may_see
from moejax.models.kv_cache import Cache, KVCache, empty_cache
from moejax.models.latent_attention import LatentAttention
from moejax.models.rotary import rotary


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routed:
    """What the routed layers say, with a leading L over them."""

    stats: RouterStats
    chosen_LBNE: jax.Array
    """Which experts each token asked for (bool)."""


Own = dict[str, jax.Array]
"""What a layer has for itself."""


class Block(nn.Module):
    """Attention and a feed-forward network, each on a normalised copy of the residual stream."""

    config: ModelConfig
    layout: MeshConfig
    routed: bool
    training: bool

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, cache: Cache, context: Context, each: Own, own: Own
    ) -> tuple[jax.Array, Cache, Routed | None]:
        config = self.config
        normed_BND = RMSNorm(config.norm_epsilon, name="attention_norm")(x_BND)
        if "window" in each:
            near_B1NM = context["distance_B1NM"] < each["window"]
            context = context | {"mask_B1NM": context["mask_B1NM"] & near_B1NM}
        form = LatentAttention if config.is_latent else Attention
        attention = form(config, self.layout, name="attention")
        y_BND, cache = attention(normed_BND, context, cache, each["layer"])
        x_BND = self._add(x_BND, y_BND)
        normed_BND = RMSNorm(config.norm_epsilon, name="feed_forward_norm")(x_BND)
        if not self.routed:
            width, name = config.dense_hidden, "feed_forward"
            dense = FeedForward(width, config.activation, self.layout, name=name)
            return self._add(x_BND, dense(normed_BND)), cache, None
        layer = MoELayer(config.moe, config.activation, self.layout, name="moe")
        y_BND, stats, chosen_BNE = layer(
            normed_BND,
            context["real_BN"],
            training=self.training,
            token_BN=context["token_BN"],
            **own,
        )
        return self._add(x_BND, y_BND), cache, Routed(stats, chosen_BNE)

    def _add(self, x_BND: jax.Array, y_BND: jax.Array) -> jax.Array:
        scale = self.config.residual_scale
        return mesh.pin(x_BND + (y_BND if scale == 1 else y_BND * scale), "tokens_BND")


class Unit(nn.Module):
    """The blocks that one step of the scan runs; what the routed ones say is stacked."""

    config: ModelConfig
    layout: MeshConfig
    routed: tuple[bool, ...]
    training: bool
    in_loop: bool

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, Cache], context: Context, each: Own, own: Own
    ) -> tuple[tuple[jax.Array, Cache], Any]:
        """``each`` has a number for each block, ``own`` arrays for each routed one."""
        x_BND, cache = carry
        block = Block
        if self.config.remat == "layer":
            # Outside a loop, XLA would find what is computed again and keep it instead.
            block = nn.remat(Block, prevent_cse=not self.in_loop)
        said = []
        for i, routed in enumerate(self.routed):
            of_layer = {name: x[len(said)] for name, x in own.items()} if routed else {}
            of_block = {name: x[i] for name, x in each.items()}
            layer = block(self.config, self.layout, routed, self.training, name=f"block_{i}")
            x_BND, cache, one = layer(x_BND, cache, context, of_block, of_layer)
            said += [one] if routed else []
        return (x_BND, cache), jax.tree.map(lambda *s: jnp.stack(s), *said) if said else None


def scan_plan(config: ModelConfig) -> list[tuple[tuple[bool, ...], int]]:
    """Split the layers into runs of a repeated unit: [(the unit's layers, repetitions), ...].

    With every second layer of 7 routed after 2 dense ones: D D | D R, D R | D.
    """
    routed, moe = config.routed_layers, config.moe
    first_dense = moe.first_dense if moe.every else 0
    period, rest = moe.every or 1, len(routed) - first_dense
    runs = [
        ((False,), first_dense),
        (routed[first_dense : first_dense + period], rest // period),
        ((False,), rest % period),
    ]
    return [(unit, repeats) for unit, repeats in runs if repeats]


def cache_for(config: ModelConfig, rows: int, slots: int) -> KVCache:
    """An empty cache for ``rows`` sequences of at most ``slots`` positions."""
    layers = [len(unit) * repeats for unit, repeats in scan_plan(config)]
    return empty_cache(config, layers, rows, slots)


class DecoderLM(nn.Module):
    """``batch -> (logits_BNV, routed)``.

    ``batch`` has ``inputs``, ``segments`` and ``positions``, all int32 [B, N]; segment 0 is
    padding. Logits are float32. ``routed`` is None for a dense model. ``training`` chooses the
    capacity factor, and lets routers draw from the random stream ``router`` if there is one.
    ``bias_LE`` is the selection bias of the routed layers, by default none. ``layout`` says how the
    model lies on the mesh in use. ``place_LER`` says where experts stand in parameters made by
    ``models.replicate``, for inference.
    """

    config: ModelConfig
    vocab_size: int
    layout: MeshConfig = MeshConfig()

    def __call__(
        self,
        batch: dict[str, jax.Array],
        training: bool,
        bias_LE: jax.Array | None = None,
        place_LER: jax.Array | None = None,
    ) -> tuple[jax.Array, Routed | None]:
        own = {"bias_E": bias_LE, "place_ER": place_LER}
        logits_BNV, routed, _ = self._run(batch, training, own, None)
        return logits_BNV, routed

    def decode(
        self,
        batch: dict[str, jax.Array],
        cache: KVCache,
        bias_LE: jax.Array | None = None,
        place_LER: jax.Array | None = None,
        reach: int | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Go on after what is in the cache: the logits of the last position alone, ``logits_B1V``,
        and the cache with the batch in it. Positions see what the cache has of their segment, but
        of no layer more than the last ``reach`` positions, themselves included.
        """
        own = {"bias_E": bias_LE, "place_ER": place_LER}
        logits_B1V, _, cache = self._run(batch, False, own, cache, reach)
        return logits_B1V, cache

    @nn.compact
    def _run(
        self,
        batch: dict[str, jax.Array],
        training: bool,
        own: dict[str, jax.Array | None],
        cache: KVCache | None,
        reach: int | None = None,
    ) -> tuple[jax.Array, Routed | None, KVCache | None]:
        config, V, D = self.config, self.vocab_size, self.config.width
        dtype = jnp.dtype(config.dtype)
        embedding_VD = self.param("embedding_VD", nn.initializers.normal(1.0), (V, D), jnp.float32)
        # From where the table lies: its gradient adds up in float32.
        x_BND = mesh.pin(embedding_VD[batch["inputs"]].astype(dtype), "tokens_BND")
        if config.embedding_scale != 1:
            x_BND *= config.embedding_scale
        context, cache = seen(config, batch, cache, reach)
        own = {name: x for name, x in own.items() if x is not None}
        x_BND, routed, layers = self._layers(
            x_BND, [] if cache is None else cache.layers, context, training, own
        )
        if cache is not None:
            cache, x_BND = replace(cache, layers=layers), x_BND[:, -1:]
        x_BND = RMSNorm(config.norm_epsilon, name="final_norm")(x_BND)
        if config.tie_embeddings:
            w_DV = mesh.gathered(embedding_VD.T.astype(dtype), "w_head_DV", self.layout.fsdp)
        else:
            w_DV = weight(self, "w_head_DV", (D, V), dtype)
        logits_BNV = (x_BND @ w_DV).astype(jnp.float32)
        scale = config.logit_multiplier
        return logits_BNV if scale == 1 else logits_BNV * scale, routed, cache

    def _layers(
        self,
        x_BND: jax.Array,
        caches: list[Cache],
        context: Context,
        training: bool,
        own: Own,
    ) -> tuple[jax.Array, Routed | None, list[Cache]]:
        """``own`` is what each routed layer has for itself, with a leading L."""
        config = self.config
        unroll = mesh.platform() == "cpu" if config.unroll is None else config.unroll
        windows = [2**30 if window is None else window for window in config.windows]
        said, layers, done, done_routed = [], [], 0, 0
        for i, (unit, repeats) in enumerate(scan_plan(config)):
            # Of this run: [repeats, layers of the unit, ...], or routed layers of the unit.
            count, count_routed = repeats * len(unit), repeats * sum(unit)
            each = {"layer": jnp.arange(count)}
            if config.attention.window is not None:
                each["window"] = jnp.array(windows[done : done + count])
            each = {name: x.reshape(repeats, len(unit)) for name, x in each.items()}
            here = {
                name: x[done_routed : done_routed + count_routed].reshape(
                    repeats, sum(unit), *x.shape[1:]
                )
                for name, x in own.items()
                if count_routed
            }
            done, done_routed = done + count, done_routed + count_routed
            in_loop = repeats > 1 and not unroll
            run = nn.scan(
                Unit,
                variable_axes={"params": 0},
                split_rngs={"params": True, "router": True},
                in_axes=(nn.broadcast, 0, 0),
                length=repeats,
                unroll=repeats if unroll else 1,
            )(config, self.layout, unit, training, in_loop, name=f"layers_{i}")
            cache = caches[i] if caches else {}
            (x_BND, cache), one = run((x_BND, cache), context, each, here)
            layers.append(cache)
            if one is not None:  # [repeats, routed in the unit, ...] -> [routed layers, ...]
                said.append(jax.tree.map(lambda s: s.reshape(-1, *s.shape[2:]), one))
        if not said:
            return x_BND, None, layers
        return x_BND, jax.tree.map(lambda *s: jnp.concatenate(s), *said), layers


def seen(
    config: ModelConfig, batch: dict[str, jax.Array], cache: KVCache | None, reach: int | None
) -> tuple[Context, KVCache | None]:
    """What all layers look at, and the cache with the batch's places in it. Positions see nothing
    that is ``reach`` or more before them.
    """
    segments_BN, positions_BN = batch["segments"], batch["positions"]
    of_BM, at_BM, N = segments_BN, positions_BN, segments_BN.shape[1]
    cos, sin = rotary(positions_BN, config)
    context = {"real_BN": segments_BN > 0, "token_BN": batch["inputs"], "cos": cos, "sin": sin}
    if cache is not None:
        start = context["start"] = cache.start
        of_BM, at_BM = (
            jax.lax.dynamic_update_slice_in_dim(all_BM, new_BN, start, 1)
            for all_BM, new_BN in (
                (cache.segments_BM, segments_BN),
                (cache.positions_BM, positions_BN),
            )
        )
        cache = replace(cache, segments_BM=of_BM, positions_BM=at_BM, start=start + N)
    mask_B1NM, distance_B1NM = may_see(segments_BN, positions_BN, of_BM, at_BM)
    context["mask_B1NM"] = mask_B1NM if reach is None else mask_B1NM & (distance_B1NM < reach)
    if config.attention.window is not None:
        context["distance_B1NM"] = distance_B1NM
    return context, cache
