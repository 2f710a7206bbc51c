"""Parameters and FLOPs of a model, from its config alone."""

from dataclasses import dataclass

from moejax.config import ModelConfig
from moejax.experts import matrices
from moejax.routing.seating import capacity


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model holds and what a token costs."""

    parameters_total: int
    parameters_active: int
    """Parameters that one token meets: its own experts, and all that is not routed."""
    flops_per_token: int
    """Training, forward and backward: three times the forward pass, recomputation left out."""


def attention_parameters(model: ModelConfig) -> int:
    """Parameters of one attention layer."""
    D, A = model.width, model.attention_head_size
    H, J = model.num_heads, model.key_value_heads
    return D * H * A + 2 * D * J * A + H * A * D + (2 * A if model.qk_norm else 0)


def feed_forward_parameters(model: ModelConfig, hidden_size: int) -> int:
    """Parameters of one feed-forward network of this hidden width."""
    return len(matrices(model.activation)) * model.width * hidden_size


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
    one_expert = feed_forward_parameters(model, moe.hidden_size)
    always = moe.shared_experts * one_expert + router_parameters(model) if routed else 0
    head = vocab_size * D
    fixed = (
        model.num_layers * (attention_parameters(model) + 2 * D)
        + dense * feed_forward_parameters(model, model.dense_hidden)
        + routed * always
        + D  # the final norm
        + (0 if model.tie_embeddings else head)
    )
    active = fixed + routed * moe.top_k * one_expert
    norms = model.num_layers * (2 * D + (2 * model.attention_head_size if model.qk_norm else 0)) + D
    products = active - norms + (head if model.tie_embeddings else 0)
    scores = 2 * model.num_layers * sequence_length * model.num_heads * model.attention_head_size
    return Cost(
        parameters_total=head + fixed + routed * moe.num_experts * one_expert,
        parameters_active=head + active,
        flops_per_token=3 * 2 * (products + scores),
    )
