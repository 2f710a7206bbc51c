"""A decoder-only transformer language model with routed layers."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax import mesh
from moejax.balance import RouterStats
from moejax.config import MeshConfig, ModelConfig
from moejax.layer import FeedForward, MoELayer, weight
from moejax.models.attention import Attention, RMSNorm, document_mask, rotary


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routed:
    """What the routed layers say, with a leading L over them."""

    stats: RouterStats
    chosen_LBNE: jax.Array
    """Which experts each token asked for (bool)."""


class Block(nn.Module):
    """Attention and a feed-forward network, each on a normalised copy of the residual stream."""

    config: ModelConfig
    layout: MeshConfig
    routed: bool
    training: bool

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, context: dict[str, jax.Array], own: dict[str, jax.Array]
    ) -> tuple[jax.Array, Routed | None]:
        config = self.config
        normed_BND = RMSNorm(config.norm_epsilon, name="attention_norm")(x_BND)
        attention = Attention(config, self.layout, name="attention")
        x_BND += attention(normed_BND, context["mask_B1NN"], context["cos"], context["sin"])
        normed_BND = RMSNorm(config.norm_epsilon, name="feed_forward_norm")(x_BND)
        if not self.routed:
            width, name = config.dense_hidden, "feed_forward"
            dense = FeedForward(width, config.activation, self.layout, name=name)
            return mesh.pin(x_BND + dense(normed_BND), "tokens_BND"), None
        layer = MoELayer(config.moe, config.activation, self.layout, name="moe")
        y_BND, stats, chosen_BNE = layer(
            normed_BND,
            context["real_BN"],
            training=self.training,
            token_BN=context["token_BN"],
            **own,
        )
        return mesh.pin(x_BND + y_BND, "tokens_BND"), Routed(stats, chosen_BNE)


class Unit(nn.Module):
    """The blocks that one step of the scan runs; what the routed ones say is stacked."""

    config: ModelConfig
    layout: MeshConfig
    routed: tuple[bool, ...]
    training: bool

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, context: dict[str, jax.Array], own: dict[str, jax.Array]
    ) -> tuple[jax.Array, Any]:
        block = nn.remat(Block, prevent_cse=False) if self.config.remat == "layer" else Block
        said = []
        for i, routed in enumerate(self.routed):
            of_layer = {name: x[len(said)] for name, x in own.items()} if routed else {}
            layer = block(self.config, self.layout, routed, self.training, name=f"block_{i}")
            x_BND, one = layer(x_BND, context, of_layer)
            said += [one] if routed else []
        return x_BND, jax.tree.map(lambda *s: jnp.stack(s), *said) if said else None


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

    @nn.compact
    def __call__(
        self,
        batch: dict[str, jax.Array],
        training: bool,
        bias_LE: jax.Array | None = None,
        place_LER: jax.Array | None = None,
    ) -> tuple[jax.Array, Routed | None]:
        config, V, D = self.config, self.vocab_size, self.config.width
        dtype = jnp.dtype(config.dtype)
        embedding_VD = self.param("embedding_VD", nn.initializers.normal(1.0), (V, D), jnp.float32)
        # From where the table lies: its gradient adds up in float32.
        x_BND = mesh.pin(embedding_VD[batch["inputs"]].astype(dtype), "tokens_BND")
        cos, sin = rotary(batch["positions"], config.attention_head_size, config.rope_theta)
        context = {
            "mask_B1NN": document_mask(batch["segments"]),
            "real_BN": batch["segments"] > 0,
            "token_BN": batch["inputs"],
            "cos": cos,
            "sin": sin,
        }
        own = {"bias_E": bias_LE, "place_ER": place_LER}
        own = {name: x for name, x in own.items() if x is not None}
        x_BND, routed = self._layers(x_BND, context, training, own)
        x_BND = RMSNorm(config.norm_epsilon, name="final_norm")(x_BND)
        if config.tie_embeddings:
            w_DV = (embedding_VD.T * D**-0.5).astype(dtype)
            w_DV = mesh.gathered(w_DV, "w_head_DV", self.layout.fsdp)
        else:
            w_DV = weight(self, "w_head_DV", (D, V), dtype)
        return (x_BND @ w_DV).astype(jnp.float32), routed

    def _layers(
        self,
        x_BND: jax.Array,
        context: dict[str, jax.Array],
        training: bool,
        own: dict[str, jax.Array],
    ) -> tuple[jax.Array, Routed | None]:
        """``own`` is what each routed layer has for itself, with a leading L."""
        config = self.config
        unroll = mesh.platform() == "cpu" if config.unroll is None else config.unroll
        said, done = [], 0
        for i, (unit, repeats) in enumerate(scan_plan(config)):
            # Of this run: [repeats, routed layers of the unit, ...].
            count = repeats * sum(unit)
            here = {
                name: x[done : done + count].reshape(repeats, sum(unit), *x.shape[1:])
                for name, x in own.items()
                if count
            }
            done += count
            run = nn.scan(
                Unit,
                variable_axes={"params": 0},
                split_rngs={"params": True, "router": True},
                in_axes=(nn.broadcast, 0),
                length=repeats,
                unroll=repeats if unroll else 1,
            )(config, self.layout, unit, training, name=f"layers_{i}")
            x_BND, one = run(x_BND, context, here)
            if one is not None:  # [repeats, routed in the unit, ...] -> [routed layers, ...]
                said.append(jax.tree.map(lambda s: s.reshape(-1, *s.shape[2:]), one))
        if not said:
            return x_BND, None
        return x_BND, jax.tree.map(lambda *s: jnp.concatenate(s), *said)
