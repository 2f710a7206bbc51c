"""A routed model from a dense one, which computes the same to begin with (sparse upcycling).

Letters: X: copies of the dense layer.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.config.moe import MOST_EXPERTS
from moejax.hf.tensors import ArrayPath
from moejax.models.layer_runs import find_stack, locate_layers, stack_layers

BANK = {"w_gate_DF": "w_gate_EDF", "w_up_DF": "w_up_EDF", "w_down_FD": "w_down_EFD"}


def upcycle_config(
    dense: ModelConfig, *, num_experts: int, top_k: int, split: int = 1, every: int = 1
) -> ModelConfig:
    """The settings of ``upcycle``'s model. Raises ``ConfigError`` that names what cannot be."""
    check(
        not any(dense.routed_layers), "upcycling begins with a dense model, but this has experts."
    )
    F, kept = dense.dense_hidden, "--split must divide"
    check(split > 0 and F % split == 0, f"{kept} the hidden width {F}, unlike {split}.")
    for name, value in (("--num-experts", num_experts), ("--top-k", top_k)):
        check(value <= MOST_EXPERTS, f"{name} must be at most {MOST_EXPERTS:,}, not {value}.")
        check(value % split == 0, f"{kept} {name} {value}: a copy is made of {split} experts.")
    check(top_k > 1, "--top-k must be at least 2: with 1 the router would learn nothing.")
    check(every > 0, f"--every must be at least 1, not {every}.")
    moe = replace(
        dense.moe,
        every=every,
        router="top_k",
        num_experts=num_experts,
        top_k=top_k,
        hidden_size=F // split,
        shared_experts=0,
        balance=replace(dense.moe.balance, loss_weight=0.01, convention="switch"),
    )
    place = "pre" if dense.norm_place == "pre_and_experts" else dense.norm_place
    return replace(dense, moe=moe, dense_hidden_size=F, norm_place=place)


def upcycle(
    dense: ModelConfig,
    params: dict,
    config: ModelConfig,
    *,
    split: int = 1,
    noise: float = 0.0,
    seed: int = 0,
) -> dict:
    """The parameters of a routed model from those of a dense one; ``config`` is
    ``upcycle_config``'s. With ``noise`` 0 its output is that of the dense model.

    Experts are copies of the dense network, and routers are drawn anew (Komatsuzaki et al. 2023,
    section 3): whatever they choose, its weights sum to 1. With ``split`` G, each copy is cut into
    G experts of a G-th of the hidden width (He et al. 2024, virtual groups): their routers begin
    equal, so that a token chooses whole copies, and the last matrix is multiplied by G. ``noise``
    adds normal numbers, of so many times the matrix's standard deviation, to every expert
    (as Komatsuzaki et al. tried), after which the output is about the same only.
    """
    moe, D = config.moe, config.width
    E, copies = moe.num_experts, moe.num_experts // split
    arrays = flatten_dict(params)
    above = {path: leaf for path, leaf in arrays.items() if not find_stack(path)}
    keys = jax.random.split(jax.random.key(seed), len(config.routed_blocks))

    def bank(name: str, w: jax.Array, key: jax.Array) -> jax.Array:
        """One layer's experts from its dense network, [E, ...]."""
        axis = 0 if name == "w_down_FD" else 1
        parts = jnp.stack(jnp.split(w, split, axis=axis)) * (split if axis == 0 else 1)
        experts = jnp.tile(parts, (copies, 1, 1)).astype(w.dtype)
        if not noise:
            return experts
        size = noise * jnp.std(experts.astype(jnp.float32))
        drawn = size * jax.random.normal(key, experts.shape)
        return (experts.astype(jnp.float32) + drawn).astype(w.dtype)

    def layer(number: int) -> dict[ArrayPath, jax.Array]:
        """A layer's arrays, as the new model has them."""
        path, repeat = locate_layers(dense)[number]
        own = {p[2:]: leaf[repeat] for p, leaf in arrays.items() if p[:2] == path}
        if not config.routed_blocks[number]:
            return own
        router_key, *bank_keys = jax.random.split(keys[number], 4)
        w_router_DX = jax.random.normal(router_key, (D, copies)) * D**-0.5
        made = {("moe", "w_router_DE"): jnp.repeat(w_router_DX, E // copies, axis=1)}
        for (name, ours), key in zip(BANK.items(), bank_keys, strict=True):
            made[("moe", ours)] = bank(name, own.pop(("feed_forward", name)), key)
        return own | made

    layers = [layer(number) for number in range(len(config.routed_blocks))]
    new = dict(above)
    for stack in stack_layers(config):
        chosen = [layers[number] for number in stack.layers]
        for path in chosen[0]:
            new[(*stack.path, *path)] = jnp.stack([one[path] for one in chosen])
    return unflatten_dict(new)
