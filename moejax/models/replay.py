"""Recorded routes: which experts the tokens of a batch chose, and the same choices made again.

A batch may have ``routes``, int [B, N, L, K]: for each token, in each of the L routed layers in
order (modules that predict further tokens left out), the numbers of its K experts in the order of
choice; -1 for no expert. The layers then take these in the place of the routers' own choices; all
else is as without them. What a router weighs its experts by, and all statistics, come from its
logits, so that gradients reach it (Ma et al. 2025, arXiv 2510.11370, "rollout routing replay").
"""

from typing import Any

import jax
import jax.numpy as jnp

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.config.model import ModelConfig
from moejax.moe.balance import Routed


def record_routes(
    model: Any,
    params: dict,
    bias_LE: jax.Array | None,
    batch: dict[str, jax.Array],
    key: jax.Array | None = None,
) -> jax.Array:
    """The routes of a batch, ``routes_BNLK`` (int32), -1 at padding: a pure function to be jitted.

    With a ``key`` as in training, where routers may draw and capacity may be smaller; without one
    as in evaluation. Choices are recorded before capacity. Raises ``ConfigError`` for a model whose
    routes cannot be replayed.
    """
    check_replays(model.config)
    training, rngs = key is not None, {} if key is None else {"router": key}
    _, routed = model.apply({"params": params}, batch, training, bias_LE, rngs=rngs)
    return order_routes(routed)


def order_routes(routed: Routed | None) -> jax.Array:
    """The routes of a batch, ``routes_BNLK``, from what the layers of a model say."""
    assert routed is not None and routed.expert_LBNK is not None  # as ``check_replays`` demands
    return jnp.moveaxis(routed.expert_LBNK, 0, 2)


def take_routes(config: ModelConfig, batch: dict[str, jax.Array]) -> jax.Array | None:
    """The routes of a batch for the layers, ``routes_LBNK``; None where it has none. Raises
    ``ConfigError`` for those of another model.
    """
    routes_BNLK = batch.get("routes")
    if routes_BNLK is None:
        return None
    check_replays(config)
    check_shape(config, routes_BNLK.shape, batch["inputs"].shape)
    return jnp.moveaxis(routes_BNLK, 2, 0)


def check_replays(config: ModelConfig) -> None:
    """Raise ``ConfigError`` for a model whose routes cannot be replayed."""
    check(
        config.material.language and any(config.routed_layers),
        "routes are those of a language model with routed layers, and this one has none."
        if config.material.language
        else "routes are those of a language model, and this one sees images.",
    )
    moe = config.moe
    if moe.built_router.replays:
        return
    reason = "tokens do not choose"
    if not moe.built_router.experts_choose:
        reason = "it takes no recorded choices in the place of its own (Router.replays)"
    raise ConfigError(f"--model.moe.router {moe.router} has no routes to replay: {reason}.")


def check_shape(config: ModelConfig, shape: tuple[int, ...], tokens: tuple[int, ...]) -> None:
    """Raise ``ConfigError`` unless these are routes of this model, of ``tokens`` [B, N] or [T]."""
    L, K = sum(config.routed_layers), config.moe.top_k
    check(
        len(shape) == len(tokens) + 2 and tuple(shape[-2:]) == (L, K),
        f"routes of shape {list(shape)} are not this model's: it has {L} routed layers and"
        f" {K} experts a token, so that they are {write_shape(tokens, L, K)}.",
    )
    check(
        tuple(shape[:-2]) == tuple(tokens),
        f"routes of shape {list(shape)} are not of these tokens: there are {list(tokens)}, so that"
        f" they are {write_shape(tokens, L, K)}.",
    )


def write_shape(tokens: tuple[int, ...], L: int, K: int) -> str:
    """The shape of routes, in words."""
    return f"{[*tokens, L, K]}: {'sequences, ' * (len(tokens) - 1)}tokens, layers, experts"
