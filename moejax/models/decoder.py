"""A decoder-only transformer language model with routed layers.

Letters: M: positions that are looked at; P: modules that predict further tokens; Q: pages that a
row looks at.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.models.context import Context
from moejax.models.embedding import look_up
from moejax.models.head import Head
from moejax.models.kv_cache import Cache
from moejax.models.kv_pages import PagedRows, Pool, take_last
from moejax.models.layers import run_layers
from moejax.models.make_context import make_context, make_paged_context
from moejax.models.next_tokens import Embed, Reading, look_ahead
from moejax.models.norm import make_norm
from moejax.models.replay import take_routes
from moejax.moe.balance import Routed, join_routed
from moejax.moe.lying import Lying
from moejax.moe.parameters import weight


class Kept(NamedTuple):
    """What is kept of positions before those at hand."""

    layers: list[Cache]
    take: Callable[[jax.Array], jax.Array]
    """The states that logits are wanted of, from those of all positions at hand."""


class DecoderLM(nn.Module):
    """``batch -> (logits_BNV, routed)``.

    ``batch`` has ``inputs``, ``segments`` and ``positions``, all int32 [B, N]; segment 0 is
    padding, and the positions of another lie one behind another. It may have ``routes``, which the
    layers then take in the place of their routers' choices (``models.replay``). Logits are float32.
    ``routed`` is None for a dense model. ``training`` chooses the capacity factor, and lets routers
    draw from the random stream ``router`` if there is one.
    ``bias_LE`` is the selection bias of the routed layers, by default none. ``layout`` says how the
    model lies on the mesh in use. ``place_LER`` says where experts stand in parameters made by
    ``inference.replicate``, for inference.
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
        # The modules that predict further tokens are asked by ``find_states`` alone.
        ahead = self.config.next_tokens > 0 and self.is_initializing()
        context = make_context(self.config, batch, self.layout.context)
        states, head, routed, *_ = self._run(batch, training, own, context, ahead=ahead)
        return head.read(states[0]), routed

    def find_states(
        self, batch: dict[str, jax.Array], training: bool, bias_LE: jax.Array | None = None
    ) -> tuple[list[jax.Array], Head, Routed | None]:
        """What the head reads, ``x_BND``, and after it what it reads of each module that predicts
        a further token; the head; and what routers say, those of the modules after the layers'.
        """
        own, ahead = {"bias_E": bias_LE}, self.config.next_tokens > 0
        context = make_context(self.config, batch, self.layout.context)
        states, head, routed, *_ = self._run(batch, training, own, context, ahead=ahead)
        return states, head, routed

    def extend(
        self,
        token_BN: jax.Array,
        rows: PagedRows,
        pool: Pool,
        bias_LE: jax.Array | None = None,
        place_LER: jax.Array | None = None,
        reach: int | None = None,
        every: bool = False,
    ) -> tuple[jax.Array, Pool, Routed | None]:
        """Go on after what texts have in pages, each with tokens of its own number: the logits of
        each row's last token, ``logits_B1V``, or of all that it has place for, ``logits_BNV``, with
        ``every``; the pool with the tokens in it; and what routers say. Positions see of no layer
        more than the last ``reach`` positions, themselves included.
        """

        def take(x_BND: jax.Array) -> jax.Array:
            return x_BND if every else take_last(x_BND, rows.count_B)

        own = {"bias_E": bias_LE, "place_ER": place_LER}
        x_B1D, head, pool, routed, _ = self._go_on(token_BN, rows, Kept(pool, take), own, reach)
        return head.read(x_B1D), pool, routed

    def extend_for_modules(
        self,
        token_BN: jax.Array,
        rows: PagedRows,
        pool: Pool,
        bias_LE: jax.Array | None = None,
        place_LER: jax.Array | None = None,
        reach: int | None = None,
        every: bool = False,
    ) -> tuple[jax.Array, Pool, Routed | None, Reading]:
        """As ``extend``, with what the modules that predict further tokens begin with. What they
        keep comes last in the pool, and stays as it was with both.
        """
        own = {"bias_E": bias_LE, "place_ER": place_LER}
        kept = Kept(pool, lambda x_BND: x_BND)
        x_BND, head, pool, routed, embed = self._go_on(token_BN, rows, kept, own, reach)
        x_B1D = x_BND if every else take_last(x_BND, rows.count_B)
        return head.read(x_B1D), pool, routed, Reading(x_BND, embed, head)

    def _go_on(
        self,
        token_BN: jax.Array,
        rows: PagedRows,
        kept: Kept,
        own: dict[str, jax.Array | None],
        reach: int | None,
    ) -> tuple[jax.Array, Head, Pool, Routed | None, Embed]:
        """What the head reads of the positions that are ``kept``, and the pool with the tokens."""
        batch, context = make_paged_context(self.config, token_BN, rows, kept.layers, reach)
        (x_B1D,), head, routed, layers, embed = self._run(batch, False, own, context, kept)
        return x_B1D, head, [*layers, *kept.layers[len(layers) :]], routed, embed

    @nn.compact
    def _run(
        self,
        batch: dict[str, jax.Array],
        training: bool,
        own: dict[str, jax.Array | None],
        context: Context,
        kept: Kept | None = None,
        ahead: bool = False,
    ) -> tuple[list[jax.Array], Head, Routed | None, list[Cache], Embed]:
        config, V, D = self.config, self.vocab_size, self.config.width
        dtype = jnp.dtype(config.dtype)
        embedding_VD = self.param("embedding_VD", nn.initializers.normal(1.0), (V, D), jnp.float32)
        in_place = isinstance(embedding_VD, Lying)

        def embed(token_BN: jax.Array) -> jax.Array:
            x_BND = look_up(embedding_VD, token_BN, dtype, self.layout.spreads)
            return x_BND if config.embedding_scale == 1 else x_BND * config.embedding_scale

        x_BND = embed(batch["inputs"])
        embedded_BND, given = x_BND, {name: x for name, x in own.items() if x is not None}
        routes_LBNK = take_routes(config, batch)
        of_layers = given if routes_LBNK is None else given | {"routes_BNK": routes_LBNK}
        x_BND, routed, layers = run_layers(
            config,
            self.layout,
            x_BND,
            context,
            training=training,
            own=of_layers,
            caches=[] if kept is None else kept.layers,
            params=None if self.is_initializing() else self.variables["params"],
            in_place=in_place or kept is not None,
        )
        if kept is not None:
            x_BND = kept.take(x_BND)
        states = [make_norm(config, "final_norm")(x_BND)]
        if ahead:
            above = {name: x[sum(config.routed_layers) :] for name, x in given.items()}
            x_PBND, said = look_ahead(
                *(config, self.layout, states[0], embedded_BND, batch, context),
                training=training,
                own=above if config.routed_blocks[-1] else {},
                params=self.variables["params"] if in_place else None,
            )
            routed = join_routed(routed, said)
            states += list(x_PBND)
        tied, scale = config.tie_embeddings, config.logit_multiplier
        w = embedding_VD if tied else weight(self, "w_head_DV", (D, V), dtype)
        head = Head(w, tied, scale, self.layout.spreads, unroll=config.unroll is True)
        return states, head, routed, layers, embed
