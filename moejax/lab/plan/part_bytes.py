"""The least that a training step moves to and from a device's memory, by part of the model.

Each product reads its factors and writes its result once, forward, for the gradients of both
factors, and when it is computed again; all that stands between products is taken to be fused into
them. So a real step moves more. Letters: A, U: widths of a head's keys and values.
"""

from dataclasses import dataclass

from moejax.config.config import Config
from moejax.lab.plan.device_parameters import Parameter, optimizer_bytes
from moejax.lab.plan.step_sizes import FLOAT, StepSizes, count_slots
from moejax.models.counts import (
    attention_products,
    count_deltas,
    delta_products,
    feed_forward_parameters,
    latent_products,
    router_parameters,
    shared_parameters,
)
from moejax.moe.experts import matrices
from moejax.runtime import device_mesh


@dataclass(frozen=True)
class Touched:
    """What all products of a part touch when each of them is computed once, in numbers."""

    of_tokens: float
    """Of a micro-batch's activations, read and written."""
    of_weights: float
    """Of matrices."""


def part_bytes(
    config: Config,
    step: StepSizes,
    parameters: list[Parameter],
    times: dict[str, float],
) -> dict[str, float]:
    """The bytes of each part in a step on one device of the mesh in use. ``times`` says how often
    each part's products are computed.
    """
    parts = config.optim.accumulate
    size = step.itemsize
    found = {}
    for part, touched in touch_products(config, step).items():
        numbers = touched.of_tokens + touched.of_weights
        found[part] = parts * times.get(part, 0.0) * numbers * size
    found["attention_scores"] = parts * times.get("attention_scores", 0.0) * scored(config, step)
    found |= pass_bytes(config, step)
    found["optimizer"] = update_bytes(config, step, parameters)
    return {part: moved for part, moved in found.items() if moved}


def touch_products(config: Config, step: StepSizes) -> dict[str, Touched]:
    """By the part of the model, without attention's scores."""
    model, moe = config.model, config.model.moe
    L, routed, deltas = len(model.routed_blocks), sum(model.routed_blocks), count_deltas(model)
    T, D, split = step.T, step.D, step.split
    one = 1 + model.next_tokens
    count = len(matrices(model.activation))
    attention = (L - deltas) * attention_widths(config, step) + deltas * delta_widths(config, step)
    latent = (L - deltas) * latent_products(model)
    projected = (L - deltas) * attention_products(model) + deltas * delta_products(model)
    dense = (L - routed) * count * (D + model.dense_hidden / split)
    shared = routed * count * (D + moe.shared_width / split) * (moe.shared_experts > 0)
    experts = moe.num_experts / device_mesh.expert_devices()
    network = feed_forward_parameters(model, moe.hidden_size) / split
    rows = step.slots * config.mesh.chunks
    return {
        "attention": Touched(T * attention, latent + (projected - latent) / split),
        "dense_feed_forward": Touched(
            T * dense, (L - routed) * feed_forward_parameters(model, model.dense_hidden) / split
        ),
        "shared_experts": Touched(T * shared, routed * shared_parameters(model) / split),
        "experts": Touched(routed * rows * count * (D + step.hidden), routed * experts * network),
        "routers": Touched(T * routed * (D + moe.num_choices), routed * router_parameters(model)),
        "next_tokens": Touched(model.next_tokens * T * 3 * D, model.next_tokens * 2 * D * D),
        # Logits are float32.
        "head": Touched(
            one * T * (D + step.vocabulary * FLOAT / step.itemsize), one * D * step.vocabulary
        ),
    }


def attention_widths(config: Config, step: StepSizes) -> float:
    """Numbers of a token that the matrices of one attention layer read and write."""
    model, settings = config.model, config.model.attention
    A, U, D = model.query_head_size, model.value_head_size, step.D
    out = step.heads * U + D
    gate = settings.output_gate * (D + step.heads * U)
    if settings.kv_rank is None:
        return 3 * D + step.heads * A + step.kv_heads * 2 * A + out + gate
    query = D if settings.query_rank is None else D + 2 * settings.query_rank
    latent = D + 2 * settings.kv_rank + model.rotary_size
    made = step.heads * (A + model.plain_head_size + U)
    return query + latent + made + out + gate


def delta_widths(config: Config, step: StepSizes) -> float:
    """Numbers of a token that the matrices of one layer with a memory read and write."""
    J, H, A, U, _ = config.model.delta_sizes
    return 3 * step.D + (2 * J * A + 3 * H * U + 2 * H) / step.split


def scored(config: Config, step: StepSizes) -> float:
    """Bytes that attention touches in all layers when its two products are computed once: queries,
    keys, values and results, and, in the dense form, scores and probabilities.
    """
    model = config.model
    attending = len(model.routed_blocks) - count_deltas(model)
    A, U = model.query_head_size, model.value_head_size
    numbers = (step.heads + step.kv_heads) * (A + U)
    pairs = 2 * step.N * step.heads if step.attention == "dense" else 0.0
    return attending * step.T * (numbers + pairs) * step.itemsize


def pass_bytes(config: Config, step: StepSizes) -> dict[str, float]:
    """What is no product: the residual stream and its norms, twice a layer, the rows that travel
    into slots and back, the embedding.
    """
    model, parts = config.model, config.optim.accumulate
    again = {"none": 0.0, "layer": 1.0, "offload": 1.0}.get(model.remat, 0.5)  # of half a layer
    passes = 2 + again + (parts > 1)
    stream = step.T * step.D * step.itemsize
    found: dict[str, float] = {
        # Read, normalised, and what a part of the layer gives added.
        "norms": parts * passes * len(model.routed_blocks) * 2 * 4 * stream,
        "embedding": parts * 2 * 2 * stream,
    }
    if any(model.routed_layers):
        # Read and written on the way there, and on the way back.
        numbers = 4 * step.slots * config.mesh.chunks * step.D
        if step.dispatch == "einsum":  # and both one-hot tensors
            numbers += 2 * step.T * model.moe.num_experts * count_slots(config)
        found["dispatch"] = parts * passes * sum(model.routed_blocks) * numbers * step.itemsize
    return found


def update_bytes(config: Config, step: StepSizes, parameters: list[Parameter]) -> float:
    """The update of the parameters: gradients are read for their norm and once more, parameters and
    moments are read and written; and parameters are converted to the type of products.
    """
    numbers = sum(p.size for p in parameters)
    moments = sum(optimizer_bytes(config, parameters).values())
    narrow = (FLOAT + step.itemsize) * config.optim.accumulate * (step.itemsize < FLOAT)
    return numbers * (4 * FLOAT + narrow) + 2 * moments
