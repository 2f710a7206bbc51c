"""The products of a training step, as a compiler counts them."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moejax.config.config import Config
from moejax.config.optim import OptimConfig
from moejax.models.counts import forward_flops, latent_products
from moejax.moe.experts import bank_shapes, matrices
from moejax.moe.parallel.route import forms_of
from moejax.routing.seating import capacity
from moejax.runtime import device_mesh, partition


@dataclass(frozen=True)
class Product:
    """Products of one kind in all layers."""

    part: str
    flops: float
    """Forward, for a token."""
    backward: int = 2
    """Products of the gradient: of both factors, or of one."""
    again: bool = True
    """Whether a recomputed layer needs their value: that of its last product is in no gradient."""
    whole: bool = False
    """Whether each device of the model axis computes all of it."""


def dispatch_of(config: Config) -> tuple[str, str]:
    """The form of dispatch and of expert parallelism on the mesh in use (see ``forms_of``)."""
    model, moe = config.model, config.model.moe
    dtype = jnp.dtype(model.dtype)
    shapes = bank_shapes(model.activation, moe.num_experts, model.width, moe.hidden_size)
    bank = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
    tokens = config.data.batch_size // config.optim.accumulate * config.data.sequence_length
    groups = tokens // moe.group_size
    x_GSD = jax.ShapeDtypeStruct((groups, moe.group_size, model.width), dtype)
    return forms_of(moe, config.mesh, bank, x_GSD, slots_of(config))


def slots_of(config: Config) -> int:
    """Slots of one expert in one group (C), in training."""
    moe = config.model.moe
    return capacity(moe.group_size, moe.top_k, moe.num_choices, moe.capacity_factor)


def products(config: Config, vocab_size: int) -> list[Product]:
    """All products of a step on the mesh in use, Muon's left out."""
    model, moe = config.model, config.model.moe
    flops = forward_flops(model, vocab_size, config.data.sequence_length)
    latent = 2 * model.num_layers * latent_products(model)
    last = 1 / len(matrices(model.activation))
    dense, shared = flops["dense_feed_forward"], flops["shared_experts"]
    found = [
        Product("attention", latent, whole=True),
        Product("attention", flops["attention"] - latent),
        Product("attention_scores", flops["attention_scores"]),
        Product("dense_feed_forward", dense * (1 - last)),
        Product("dense_feed_forward", dense * last, again=False),
        Product("shared_experts", shared * (1 - last)),
        Product("shared_experts", shared * last, again=moe.shared_gate),
        Product("routers", flops["routers"], whole=True),
        Product("head", flops["head"], again=False, whole=True),
    ]
    return found + (routed_products(config, flops["experts"]) if moe.every else [])


def routed_products(config: Config, flops: float) -> list[Product]:
    """The products of the experts, and those of the ``einsum`` dispatch. Slots are computed whether
    they are empty or not; what experts give is needed again where it is weighted afterwards, for
    the gradient of the weights.
    """
    model, moe = config.model, config.model.moe
    last = 1 / len(matrices(model.activation))
    dispatch, _ = dispatch_of(config)
    weighs_output = not moe.built_router.weighs_input
    if dispatch != "grouped":
        flops *= moe.num_experts * slots_of(config) / moe.group_size / moe.top_k
    found = [
        Product("experts", flops * (1 - last)),
        Product("experts", flops * last, again=dispatch != "grouped" and weighs_output),
    ]
    if dispatch == "einsum":
        slots = moe.num_experts * slots_of(config)
        each = 2 * sum(model.routed_layers) * slots * model.width
        # One of the tensors is one-hot and has no gradient, but where slots mix tokens.
        mixed = moe.built_router.slots
        first, second = (1 + mixed, 2) if weighs_output else (2, 1)
        found += [
            Product("dispatch", each, backward=first, whole=True),
            Product("dispatch", each, backward=second, again=False, whole=True),
        ]
    return found


def step_flops(config: Config, vocab_size: int) -> float:
    """FLOPs of a training step on one device of the mesh in use, as a compiler counts products;
    ``muon_flops`` are not in it.

    On top of ``cost``: slots that stay empty, the products of the ``einsum`` dispatch, what is
    computed again where layers are recomputed, the whole forward pass again where micro-batches are
    accumulated, and what the devices of the model axis compute each for themselves.
    """
    return sum(part_flops(config, vocab_size).values())


def part_flops(config: Config, vocab_size: int) -> dict[str, float]:
    """``step_flops`` of each part."""
    tokens = config.data.batch_size * config.data.sequence_length
    remat, accumulates = config.model.remat == "layer", config.optim.accumulate > 1
    found: dict[str, float] = {}
    for product in products(config, vocab_size):
        times = 1 + product.backward + (product.again and remat) + accumulates
        devices = device_mesh.token_devices() if product.whole else device_mesh.devices()
        here = times * product.flops * tokens / devices
        found[product.part] = found.get(product.part, 0.0) + here
    return {part: flops for part, flops in found.items() if flops}


def muon_flops(params: object, config: OptimConfig) -> float:
    """FLOPs of the Newton-Schulz iterations over all matrices that Muon takes, on one device of the
    mesh in use: experts are its own, other matrices those of all.
    """

    def of(path: tuple, leaf: jax.ShapeDtypeStruct) -> float:
        if config.kind_of(path[-1].key) != "muon":
            return 0.0
        *stacked, rows, columns = leaf.shape
        m, n = sorted((rows, columns))
        devices = (
            device_mesh.expert_devices()
            if "expert" in partition.PARAMETERS.get(path[-1].key, ())
            else 1
        )
        # X X^T, its square, and the product with X.
        return math.prod(stacked) / devices * config.muon_iterations * (4 * m * m * n + 2 * m**3)

    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(of, params)))
