"""Multi-token prediction: modules above the last layer, each of which predicts the token one
further ahead than the one before it (DeepSeek-V3, 2024, section 2.2).

Letters: P: modules; X: the width of an embedding and of a hidden state, side by side.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.models.context import Context
from moejax.models.head import Head
from moejax.models.kv_cache import Cache
from moejax.models.layer_runs import NEXT_BLOCK, NEXT_TOKENS, list_blocks
from moejax.models.layers import Block, Own, lay_at, settings_of_layers, unrolls
from moejax.models.norm import make_norm
from moejax.models.recompute import recompute
from moejax.moe.balance import Routed
from moejax.moe.lying import multiply
from moejax.moe.parameters import weight
from moejax.runtime import partition
from moejax.runtime.pieces import shift

Embed = Callable[[jax.Array], jax.Array]
"""``token_BN -> x_BND``, as the model has its own tokens."""
Carry = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Of each position: a hidden state, and of the last token that was looked at ahead of it the
embedding, the number and the document."""


class Reading(NamedTuple):
    """What the modules that predict further tokens begin with. Not a pytree."""

    x_BND: jax.Array
    """The states of all positions at hand, as the head reads them."""
    embed: Embed
    head: Head


def find_real(segments_BN: jax.Array, count: int, pieces: int = 1) -> jax.Array:
    """Which positions have a token ``count`` further on in their own document."""
    return (segments_BN > 0) & (shift(segments_BN, count, pieces) == segments_BN)


class NextToken(nn.Module):
    """One module: it sees each position's hidden state and the embedding of the next token, and
    gives the hidden state that the output head reads the token after that from.

    DeepSeek-V3, Eq. 21-22. As in the released weights, the embedding comes first in the projection
    (in Eq. 21 second), and the hidden state is the one that the output head reads: after the norm
    of the model, or of the module before. Positions whose document has ended are padding.
    """

    config: ModelConfig
    layout: MeshConfig
    training: bool
    in_loop: bool

    def __call__(
        self, carry: Carry, context: Context, segments_BN: jax.Array, each: Own, own: Own
    ) -> tuple[Carry, tuple[jax.Array, Routed | None]]:
        further = partial(shift, pieces=self.layout.context)
        x_BND, ahead_BND, token_BN, of_BN = carry
        ahead_BND, token_BN, of_BN = further(ahead_BND), further(token_BN), further(of_BN)
        context = context | {
            "real_BN": (segments_BN > 0) & (of_BN == segments_BN),
            "token_BN": token_BN,
        }
        x_BND, _, said = self.predict(x_BND, ahead_BND, {}, context, each, own)
        return (x_BND, ahead_BND, token_BN, of_BN), (x_BND, said)

    @nn.compact
    def predict(
        self,
        x_BND: jax.Array,
        ahead_BND: jax.Array,
        cache: Cache,
        context: Context,
        each: Own,
        own: Own,
    ) -> tuple[jax.Array, Cache, Routed | None]:
        """The hidden state of each position, from the one before it and the embedding of the token
        that it is told of; and the cache of the block.
        """
        config = self.config
        both_BNX = jnp.concatenate(
            [
                make_norm(config, "embedding_norm")(ahead_BND),
                make_norm(config, "hidden_norm")(x_BND),
            ],
            axis=-1,
        )
        D = config.width
        x_BND = multiply(both_BNX, weight(self, "w_merge_XD", (2 * D, D), both_BNX.dtype))
        block = recompute(Block, config, self.in_loop)
        kind = list_blocks(config)[-1]
        layer = block(config, self.layout, kind, self.training, name=NEXT_BLOCK)
        x_BND, cache, said = layer(partition.pin(x_BND, "tokens_BND"), cache, context, each, own)
        return make_norm(config, "final_norm")(x_BND), cache, said


def look_ahead(
    config: ModelConfig,
    layout: MeshConfig,
    x_BND: jax.Array,
    embedded_BND: jax.Array,
    batch: dict[str, jax.Array],
    context: Context,
    *,
    training: bool,
    own: Own,
    params: Mapping[str, Any] | None = None,
) -> tuple[jax.Array, Routed | None]:
    """All modules, as submodules of the one that calls: the states for the output head,
    ``x_PBND``, and what their routers say, with a leading P. ``x_BND`` is the state that the model
    itself hands to its head, ``embedded_BND`` its tokens' embedding; ``own`` is what each routed
    module has for itself, with a leading P. ``params`` are the model's parameters where they are
    read where they lie.
    """
    P, unroll = config.next_tokens, unrolls(config, params is not None)
    each = {name: jnp.full(P, numbers[-1]) for name, numbers in settings_of_layers(config).items()}
    each["layer"] = jnp.zeros(P, jnp.int32)  # which is where a cache would have it
    segments_BN = batch["segments"]
    carry = (x_BND, embedded_BND, batch["inputs"], segments_BN)
    settings = (config, layout, training, P > 1 and not unroll)
    if params is None:
        scan = nn.scan(
            NextToken,
            variable_axes={"params": 0},
            split_rngs={"params": True, "router": True},
            in_axes=(nn.broadcast, nn.broadcast, 0, 0),
            length=P,
            unroll=P if unroll else 1,
        )
        run = scan(*settings, name=NEXT_TOKENS)
        return run(carry, context, segments_BN, each, own)[1]
    alone = NextToken(*settings, parent=None)

    def step(carry: Carry, numbered: tuple[jax.Array, Own, Own]) -> Any:
        mine = lay_at(params[NEXT_TOKENS], numbered[0])
        return alone.apply({"params": mine}, carry, context, segments_BN, *numbered[1:])

    numbered = (jnp.arange(P), each, own)
    return jax.lax.scan(step, carry, numbered, unroll=P if unroll else 1)[1]


def predict_from_pages(
    config: ModelConfig,
    layout: MeshConfig,
    params: Mapping[str, Any],
    number: int,
    x_BND: jax.Array,
    ahead_BND: jax.Array,
    cache: Cache,
    context: Context,
    own: Own,
) -> tuple[jax.Array, Cache]:
    """The module of this number alone, at inference: the hidden states of positions from those that
    it is given and the embedding of the token that comes ``number + 1`` after each; and the cache
    of all modules, where it reads what it has kept of the positions before. ``params`` are the
    model's, read where they lie; ``own`` is what the module has for itself.
    """
    alone = NextToken(config, layout, False, False, parent=None)
    each = {name: jnp.array(x[-1]) for name, x in settings_of_layers(config).items()}
    each["layer"] = jnp.array(number)
    mine = {"params": lay_at(params[NEXT_TOKENS], jnp.array(number))}
    given = (x_BND, ahead_BND, cache, context, each, own)
    found: Any = alone.apply(mine, *given, method="predict")
    return found[:2]
