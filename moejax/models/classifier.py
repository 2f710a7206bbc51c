"""Classifiers of images: a vision transformer, and feed-forward layers alone.

Letters: M: positions that are looked at; X: numbers of a patch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.models.attend.seen import Seen
from moejax.models.context import Context
from moejax.models.head import Head
from moejax.models.layers import run_layers
from moejax.models.norm import make_norm
from moejax.models.replay import check_replays
from moejax.moe.balance import Routed
from moejax.moe.lying import multiply
from moejax.moe.parameters import weight
from moejax.runtime import partition


class ImageClassifier(nn.Module):
    """``batch -> (logits_B1V, routed)``: an image is a row with one target, its class.

    ``batch`` has ``images`` (uint8 [B, height, width, channels]) and ``segments`` (int32 [B, 1]; 0
    is padding, which takes no expert's slot). Logits are float32. For ``vit`` (Dosovitskiy et al.
    2020) tokens are the patches, which all see each other, and the mean of the last layer's goes to
    the head; for ``mlp`` an image is one token, and there is no attention. Both depart from the
    papers in what all models here share: RMS norms on the way into each layer, on queries and on
    keys, and no biases. Other arguments are those of ``DecoderLM``.
    """

    config: ModelConfig
    vocab_size: int
    layout: MeshConfig = MeshConfig()

    def __call__(
        self, batch: dict[str, jax.Array], training: bool, bias_LE: jax.Array | None = None
    ) -> tuple[jax.Array, Routed | None]:
        states, head, routed = self.find_states(batch, training, bias_LE)
        return head.read(states[0]), routed

    @nn.compact
    def find_states(
        self, batch: dict[str, jax.Array], training: bool, bias_LE: jax.Array | None = None
    ) -> tuple[list[jax.Array], Head, Routed | None]:
        """What the head reads, ``x_B1D``; the head; and what routers say."""
        config, D, V = self.config, self.config.width, self.vocab_size
        if "routes" in batch:
            check_replays(config)
        dtype = jnp.dtype(config.dtype)
        x_BNX = patches(batch["images"], config.patch_side).astype(jnp.float32) / 127.5 - 1
        N, X = x_BNX.shape[1:]
        x_BND = multiply(x_BNX.astype(dtype), weight(self, "w_patch_XD", (X, D), dtype))
        if N > 1:
            normal = nn.initializers.normal(0.02)
            x_BND += self.param("position_ND", normal, (N, D), jnp.float32).astype(dtype)
        x_BND, routed, _ = run_layers(
            config,
            self.layout,
            partition.pin(x_BND, "tokens_BND"),
            self._context(batch["segments"], N),
            training=training,
            own={} if bias_LE is None else {"bias_E": bias_LE},
            params=None if self.is_initializing() else self.variables["params"],
        )
        x_B1D = make_norm(config, "final_norm")(x_BND).mean(1, keepdims=True)
        return [x_B1D], Head(weight(self, "w_head_DV", (D, V), dtype)), routed

    def _context(self, segments_B1: jax.Array, N: int) -> Context:
        """All positions of an image see each other, and none is rotated."""
        config, rows = self.config, len(segments_B1)
        real_BN = jnp.broadcast_to(segments_B1 > 0, (rows, N))
        context: Context = {"real_BN": real_BN, "token_BN": None}
        if config.kind == "mlp":
            return context
        one = jnp.zeros((1, N), jnp.int32)  # the same image, and order does not matter
        no_angles = jnp.zeros((1, 1, 1, 2, 0), jnp.float32)
        return context | {
            "seen": Seen(of_BN=one, at_BN=one, of_BM=one, at_BM=one, causal=False),
            "cos": no_angles,
            "sin": no_angles,
        }


def patches(images: jax.Array, size: int) -> jax.Array:
    """Cut images [B, height, width, channels] into patches of ``size`` x ``size`` pixels, row by
    row: ``x_BNX``, in which X counts the numbers of a patch.
    """
    B, height, width, channels = images.shape
    grid = images.reshape(B, height // size, size, width // size, size, channels)
    return grid.swapaxes(2, 3).reshape(B, -1, size * size * channels)
