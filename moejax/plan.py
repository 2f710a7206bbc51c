"""Parameters and FLOPs of a model, from its config alone."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moejax import mesh
from moejax.config import Config, ModelConfig
from moejax.experts import bank_shapes, matrices
from moejax.parallel import forms_of
from moejax.routing.seating import capacity


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model holds and what a token costs."""

    parameters_total: int
    parameters_active: int
    """Parameters that one token meets: its own experts, and all that is not routed."""
    flops_per_token: int
    """Training, forward and backward: three times the forward pass, recomputation left out."""


def attention_products(model: ModelConfig) -> int:
    """Numbers in the matrices of one attention layer."""
    D, H, J, settings = model.width, model.num_heads, model.key_value_heads, model.attention
    A, U = model.query_head_size, model.value_head_size
    if not model.is_latent:
        return D * H * A + 2 * D * J * A + H * A * D
    R, rank = settings.kv_rank, settings.query_rank
    query = D * H * A if rank is None else D * rank + rank * H * A
    keys_and_values = D * (R + model.rotary_size) + R * H * (model.plain_head_size + U)
    return query + keys_and_values + H * U * D


def attention_vectors(model: ModelConfig) -> int:
    """Numbers in the norms, biases and sinks of one attention layer."""
    D, H, J, settings = model.width, model.num_heads, model.key_value_heads, model.attention
    A = model.query_head_size
    if model.is_latent:
        return settings.kv_rank + (settings.query_rank or 0)
    norms = model.qk_norm * (2 * A if settings.qk_norm_over == "head" else (H + J) * A)
    biases = (settings.bias != "none") * (H + 2 * J) * A + (settings.bias == "all") * D
    return norms + biases + settings.sinks * H


def feed_forward_parameters(model: ModelConfig, hidden_size: int) -> int:
    """Parameters of one feed-forward network of this hidden width."""
    return len(matrices(model.activation)) * model.width * hidden_size


def expert_biases(model: ModelConfig) -> int:
    """Numbers in the biases of one expert."""
    inner = (len(matrices(model.activation)) - 1) * model.moe.hidden_size
    return model.moe.expert_bias * (inner + model.width)


def router_parameters(model: ModelConfig) -> int:
    """Parameters of one layer's router, with the gate of the shared experts."""
    moe, router = model.moe, model.moe.built_router
    each = model.width * moe.num_choices
    if not router.learned:
        count = 0
    elif router.slots:
        slots = capacity(moe.group_size, moe.top_k, moe.num_choices, moe.capacity_factor)
        count = each * slots + 1
    else:
        noise = getattr(router.rule, "noise", None) == "learned"
        count = each * (1 + noise) + moe.num_choices * router.linear_bias
    return count + model.width * (moe.shared_gate and moe.shared_experts > 0)


def cost(model: ModelConfig, vocab_size: int, sequence_length: int) -> Cost:
    """Count a decoder's parameters and FLOPs. A multiply-add is 2 FLOPs; embedding look-ups, norms,
    softmax and dispatch are left out, attention scores are counted in full. A token counts as
    meeting K experts, also where zero-computation experts or the router make that fewer.
    """
    D, moe = model.width, model.moe
    routed = sum(model.routed_layers)
    dense = model.num_layers - routed
    network = feed_forward_parameters(model, moe.hidden_size)
    one_expert = network + expert_biases(model)
    always = moe.shared_experts * network + router_parameters(model) if routed else 0
    head = vocab_size * D
    norms = model.num_layers * (attention_vectors(model) + 2 * D) + D
    fixed = (
        model.num_layers * attention_products(model)
        + norms
        + dense * feed_forward_parameters(model, model.dense_hidden)
        + routed * always
        + (0 if model.tie_embeddings else head)
    )
    active = fixed + routed * moe.top_k * one_expert
    vectors = norms + routed * moe.top_k * expert_biases(model)
    products = active - vectors + (head if model.tie_embeddings else 0)
    widths = model.num_heads * (model.query_head_size + model.value_head_size)
    scores = model.num_layers * sequence_length * widths
    return Cost(
        parameters_total=head + fixed + routed * moe.num_experts * one_expert,
        parameters_active=head + active,
        flops_per_token=3 * 2 * (products + scores),
    )


def step_flops(config: Config, vocab_size: int) -> float:
    """FLOPs of a training step on one device of the mesh in use, as a compiler counts products.

    On top of ``cost``: slots that stay empty, the products of the ``einsum`` dispatch, the forward
    pass again where layers are recomputed, and once more where micro-batches are accumulated.
    """
    model, data = config.model, config.data
    tokens = data.batch_size * data.sequence_length
    head = 2 * vocab_size * model.width
    layers = cost(model, vocab_size, data.sequence_length).flops_per_token / 3 - head
    layers += sum(model.routed_layers) * more_flops_of_slots(config)
    again = (layers + head) * (config.optim.accumulate > 1)
    forward_and_backward = (3 + (model.remat == "layer")) * layers + 3 * head
    # The head is whole on every device of the model axis.
    spread = tokens / mesh.devices()
    return spread * (forward_and_backward + again) + 3 * head * (
        tokens / mesh.token_devices() - spread
    )


def more_flops_of_slots(config: Config) -> float:
    """Forward FLOPs a token of a routed layer beyond those of its chosen experts."""
    model, moe = config.model, config.model.moe
    D, F, E, S = model.width, moe.hidden_size, moe.num_experts, moe.group_size
    slots = capacity(S, moe.top_k, moe.num_choices, moe.capacity_factor)
    dtype = jnp.dtype(model.dtype)
    shapes = bank_shapes(model.activation, E, D, F)
    bank = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
    groups = config.data.batch_size * config.data.sequence_length // S
    x_GSD = jax.ShapeDtypeStruct((groups, S, D), dtype)
    dispatch, _ = forms_of(moe, config.mesh, bank, x_GSD, slots)
    if dispatch == "grouped":
        return 0.0
    empty = (E * slots / S - moe.top_k) * 2 * feed_forward_parameters(model, F)
    return empty + (4 * E * slots * D if dispatch == "einsum" else 0)
