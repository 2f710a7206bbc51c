"""The matrix products of a training step, counted as a compiler counts them."""

import math
from dataclasses import dataclass
from typing import Any

import jax

from moejax.config.config import Config
from moejax.config.model import ModelConfig
from moejax.config.optim import OptimConfig
from moejax.lab.plan.step_sizes import choose_attention, choose_dispatch, count_slots
from moejax.models.attend.of_model import share_of_scores
from moejax.models.counts import (
    count_deltas,
    delta_rule_products,
    forward_flops,
    latent_products,
)
from moejax.moe.experts import matrices
from moejax.runtime import device_mesh, partition
from moejax.train.optimizer import iterates_square

ACTIVATIONS = ("attention_scores", "dispatch")
"""Parts whose products have no parameter for a factor."""


@dataclass(frozen=True)
class Product:
    """The matrix products of one kind, in all layers."""

    part: str
    flops: float
    """In the forward pass, for one token."""
    backward: float = 2
    """How many products its gradient takes: 2 for the gradients of both factors, or 1."""
    again: bool = True
    """Whether a recomputed layer computes it again; no gradient needs the last product's value."""
    half: str = ""
    """The policy of recomputation that computes only this part of a layer again."""
    name: str = ""
    """What --model.remat-keep calls its value."""
    whole: bool = False
    """Whether each device of the model axis computes the whole product."""


def list_products(config: Config, vocab_size: int) -> list[Product]:
    """All products of a step on the mesh in use, without those of Muon."""
    model, moe = config.model, config.model.moe
    flops = forward_flops(model, vocab_size, config.data.sequence_length)
    attending = len(model.routed_blocks) - count_deltas(model)
    whole = partition.find_vocabulary_axis(vocab_size) is None
    latent = 2 * attending * latent_products(model)
    outputs = attending * model.num_heads * model.value_head_size
    outputs += count_deltas(model) * model.delta_sizes.value_heads * model.delta_sizes.value_size
    outputs = min(2 * outputs * model.width, flops["attention"] - latent)
    last = 1 / len(matrices(model.activation))
    heads: dict[str, Any] = {"half": "attention", "name": "queries_keys_values"}
    hidden: dict[str, Any] = {"half": "experts", "name": "hidden"}
    dense, shared = flops["dense_feed_forward"], flops["shared_experts"]
    found = [
        Product("attention", latent, whole=True, **heads),
        Product("attention", flops["attention"] - latent - outputs, **heads),
        Product("attention", outputs, half="attention", name="attention_output"),
        Product("attention", count_expansions(config), **heads),
        Product("attention_scores", count_rule(config), half="attention"),
        *list_score_products(config, vocab_size),
        Product("dense_feed_forward", dense * (1 - last), **hidden),
        Product("dense_feed_forward", dense * last, again=False),
        Product("shared_experts", shared * (1 - last), **hidden),
        Product("shared_experts", shared * last, again=moe.shared_gate, half="experts"),
        Product("routers", flops["routers"], whole=True, half="experts", name="router_logits"),
        Product("head", flops["head"], again=False, whole=whole),
        Product("next_tokens", flops.get("next_tokens", 0), again=False, whole=True),
    ]
    return found + (list_routed_products(config, flops["experts"]) if moe.every else [])


def count_expansions(config: Config) -> int:
    """FLOPs for one token, forward, of making keys and values of latent vectors that come from the
    other devices of the context axis, each of which does so.
    """
    model = config.model
    heads = model.num_heads * (model.plain_head_size + model.value_head_size)
    matrix = (model.attention.kv_rank or 0) * heads
    return 2 * len(model.routed_blocks) * matrix * (config.mesh.context - 1)


def list_score_products(config: Config, vocab_size: int) -> list[Product]:
    """The products of attention's scores and of its probabilities. Block by block, those that the
    causal mask or a window hides are left out, and the gradient computes scores again: 5 products,
    beside 2 in the forward pass.
    """
    model, N = config.model, config.data.sequence_length
    flops = forward_flops(model, vocab_size, N)["attention_scores"] - count_rule(config)
    if choose_attention(config)[0] in ("dense", "none"):
        values = model.value_head_size / (model.query_head_size + model.value_head_size)
        return [
            Product("attention_scores", flops * (1 - values), half="attention"),
            Product("attention_scores", flops * values, half="attention", name="attention_heads"),
        ]
    computed = flops * share_of_scores(model, N)
    return [
        Product(
            "attention_scores", computed, backward=2.5, half="attention", name="attention_heads"
        )
    ]


def count_rule(config: Config) -> int:
    """FLOPs of the delta rule for one token, forward."""
    each = delta_rule_products(config.model, config.data.sequence_length)
    return 2 * count_deltas(config.model) * each


def list_routed_products(config: Config, flops: float) -> list[Product]:
    """The products of the experts, and those of the ``einsum`` dispatch. Empty slots are computed,
    too. Where the outputs of the experts are weighted, the gradient of the weights needs the
    outputs again; ``gather`` weighs hidden numbers instead, unless experts are spread.
    """
    model, moe = config.model, config.model.moe
    last = 1 / len(matrices(model.activation))
    dispatch, _ = choose_dispatch(config)
    weighs_output = not moe.built_router.weighs_input
    asks_again = dispatch == "einsum" or (dispatch == "gather" and config.mesh.expert > 1)
    if dispatch != "grouped":
        flops *= moe.num_experts * count_slots(config) / moe.group_size / moe.mean_experts
    found = [
        Product("experts", flops * (1 - last), half="experts", name="hidden"),
        Product(
            "experts",
            flops * last,
            again=weighs_output and asks_again,
            half="experts",
            name="expert_outputs",
        ),
    ]
    if dispatch == "einsum":
        slots = moe.num_experts * count_slots(config)
        each = 2 * sum(model.routed_blocks) * slots * model.width
        # One of the tensors is one-hot and has no gradient, but where slots mix tokens.
        mixed = moe.built_router.slots
        first, second = (1 + mixed, 2) if weighs_output else (2, 1)
        found += [
            Product(
                "dispatch", each, backward=first, whole=True, half="experts", name="expert_inputs"
            ),
            Product("dispatch", each, backward=second, again=False, whole=True),
        ]
    return found


def step_flops(config: Config, vocab_size: int) -> float:
    """FLOPs of a training step on one device of the mesh in use, as a compiler counts products,
    without ``muon_flops``.

    It has these on top of ``cost``: slots that stay empty, the products of the ``einsum`` dispatch,
    recomputed layers, a second forward pass if micro-batches are accumulated, and products that
    every device of the model axis computes for itself.
    """
    return sum(part_flops(config, vocab_size).values())


def part_flops(config: Config, vocab_size: int) -> dict[str, float]:
    """``step_flops``, by the part of the model."""
    found: dict[str, float] = {}
    for product in list_products(config, vocab_size):
        here = count_in_step(product, config)
        found[product.part] = found.get(product.part, 0.0) + here
    return {part: flops for part, flops in found.items() if flops}


def count_in_step(product: Product, config: Config) -> float:
    """FLOPs of a product in a step on one device of the mesh in use."""
    tokens = config.data.batch_size * config.data.sequence_length
    accumulates = config.optim.accumulate > 1
    backward = product.backward - is_frozen(product, config)
    times = 1 + backward + is_again(product, config.model) + accumulates
    devices = device_mesh.token_devices() if product.whole else device_mesh.devices()
    return times * product.flops * tokens / devices


def is_frozen(product: Product, config: Config) -> bool:
    """Whether a factor of the product is a parameter that stays, so that it has no gradient. The
    products of adapters themselves are few, and are not counted.
    """
    lora = config.run.lora
    trained = product.part in ACTIVATIONS or (product.part == "routers" and lora.routers)
    return lora.rank is not None and not trained


def hidden_flops(config: Config, vocab_size: int) -> float:
    """The part of ``step_flops`` that compilers do not count: the products of attention's scores,
    where they are computed in loops, whose bodies count once, or in a kernel, which does not count.
    """
    if choose_attention(config)[0] in ("dense", "none"):
        return 0.0
    products = list_score_products(config, vocab_size)
    return sum(count_in_step(product, config) for product in products)


def is_again(product: Product, model: ModelConfig) -> bool:
    """Whether the backward pass computes a product again, by the policy of the model."""
    if model.remat in ("none", "layer", "offload"):
        recomputed = model.remat != "none" and product.name not in model.remat_keep
        return product.again and recomputed
    # What attention adds to the residual stream is read by norms and by the other half alone.
    ends = product.name == "attention_output" and model.norm_place not in ("post", "sandwich")
    return product.again and product.half == model.remat and not ends


def forward_part_flops(config: Config, vocab_size: int) -> dict[str, float]:
    """The part of ``part_flops`` that one forward pass computes."""
    tokens = config.data.batch_size * config.data.sequence_length
    found: dict[str, float] = {}
    for product in list_products(config, vocab_size):
        devices = device_mesh.token_devices() if product.whole else device_mesh.devices()
        found[product.part] = found.get(product.part, 0.0) + product.flops * tokens / devices
    return {part: flops for part, flops in found.items() if flops}


def muon_flops(params: object, config: OptimConfig) -> float:
    """FLOPs of the Newton-Schulz iterations over all matrices that Muon moves, on one device of the
    mesh in use. A device does this for its own experts, and for all of the other matrices.
    """

    def count_flops(path: tuple, leaf: jax.ShapeDtypeStruct) -> float:
        keys = [key.key for key in path]
        if config.choose_transform(keys[-1]) != "muon":
            return 0.0
        name = keys[-2] if keys[-1] in partition.ADAPTER else keys[-1]
        *stacked, rows, columns = leaf.shape
        m, n = sorted((rows, columns))
        devices = (
            device_mesh.expert_devices() if "expert" in partition.PARAMETERS.get(name, ()) else 1
        )
        times = config.muon_iterations
        if iterates_square(m, n, times):
            # X X^T once, and the product with X; of squares each iteration but the first and the
            # last has four products, these two less.
            of_one = 4 * m * m * n + (8 * times - 6) * m**3
        else:
            # X X^T, its square, and the product with X.
            of_one = times * (4 * m * m * n + 2 * m**3)
        return math.prod(stacked) / devices * of_one

    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(count_flops, params)))
