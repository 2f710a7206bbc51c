"""Parameters and FLOPs of a model, part by part, from its config alone."""

from dataclasses import dataclass

from moejax.config.model import ModelConfig
from moejax.models.delta_rule import CHUNK
from moejax.moe.experts import matrices
from moejax.routing.seating import capacity


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model holds and what a token costs."""

    parameters_total: int
    parameters_active: int
    """Parameters that one token meets: its own experts, and all that is not routed."""
    flops_per_token: int
    """Training, forward and backward: three times the forward pass, recomputation left out."""


def count_deltas(model: ModelConfig) -> int:
    """Layers with a memory in attention's place; the blocks of modules that predict further tokens
    count as layers.
    """
    return (model.attention_kinds + model.attention_kinds[-1:] * model.next_tokens).count("delta")


def delta_products(model: ModelConfig) -> int:
    """Numbers in the matrices of one layer with a memory."""
    J, H, A, U, _ = model.delta_sizes
    # Queries and keys; values, gates and output; how much is written and forgotten.
    return model.width * (2 * J * A + 3 * H * U + 2 * H)


def delta_extras(model: ModelConfig) -> int:
    """Numbers of one layer with a memory that are in no matrix: convolutions, rates and steps."""
    J, H, A, U, convolution = model.delta_sizes
    return convolution * (2 * J * A + H * U) + 2 * H


def delta_rule_products(model: ModelConfig, sequence_length: int) -> int:
    """Multiply-adds of a position in the products of ``delta_rule.in_chunks``."""
    J, H, A, U, _ = model.delta_sizes
    M = min(CHUNK, sequence_length)
    padded = 1 << (M - 1).bit_length()
    inverse = padded * (padded * padded - 1) // (3 * M)  # see ``unit_triangular``
    return 2 * J * M * A + H * (M * M + inverse + M * (U + A) + M * U + 3 * A * U)


def attention_products(model: ModelConfig) -> int:
    """Numbers in the matrices of one attention layer; an ``mlp`` has none."""
    if model.kind == "mlp":
        return 0
    D, H, J = model.width, model.num_heads, model.key_value_heads
    A, U = model.query_head_size, model.value_head_size
    settings = model.attention
    gate = settings.output_gate * D * H * U
    if settings.kv_rank is None:
        return D * H * A + 2 * D * J * A + H * A * D + gate
    query = D if settings.query_rank is None else settings.query_rank
    latent = settings.kv_rank * H * (model.plain_head_size + U)
    return latent_products(model) + query * H * A + latent + H * U * D + gate


def latent_products(model: ModelConfig) -> int:
    """Numbers in the matrices that make the latent vectors of one layer; every device of the model
    axis has them whole.
    """
    settings = model.attention
    if settings.kv_rank is None:
        return 0
    return model.width * (settings.kv_rank + model.rotary_size + (settings.query_rank or 0))


def attention_biases(model: ModelConfig) -> int:
    """Numbers in the biases and sinks of one attention layer."""
    H, J, A, settings = (
        model.num_heads,
        model.key_value_heads,
        model.query_head_size,
        model.attention,
    )
    biases = (settings.bias != "none") * (H + 2 * J) * A + (settings.bias == "all") * model.width
    return biases + settings.sinks * H


def layer_norms(model: ModelConfig, delta: bool = False) -> int:
    """Numbers in the norms of one layer, with attention or with a memory; that of the output of its
    experts left out.
    """
    ends = 2 if model.norm_place == "sandwich" else 1
    if delta:
        return 2 * ends * model.width + model.delta_sizes.value_size
    if model.kind == "mlp":
        return ends * model.width
    H, J, A, settings = (
        model.num_heads,
        model.key_value_heads,
        model.query_head_size,
        model.attention,
    )
    if settings.kv_rank is not None:
        inner = settings.kv_rank + (settings.query_rank or 0)
    else:
        inner = model.qk_norm * (2 * A if settings.qk_norm_over == "head" else (H + J) * A)
    return 2 * ends * model.width + inner


def norm_parameters(model: ModelConfig) -> int:
    """Numbers in all norms of a model."""
    L, routed, deltas = len(model.routed_blocks), sum(model.routed_blocks), count_deltas(model)
    of_experts = routed * (model.norm_place == "pre_and_experts")
    ends = 1 + 3 * model.next_tokens
    layers = (L - deltas) * layer_norms(model) + deltas * layer_norms(model, True)
    return layers + (of_experts + ends) * model.width


def feed_forward_parameters(model: ModelConfig, hidden_size: int) -> int:
    """Parameters of one feed-forward network of this hidden width."""
    return len(matrices(model.activation)) * model.width * hidden_size


def expert_parameters(model: ModelConfig) -> int:
    """Parameters of one expert, with its biases."""
    moe = model.moe
    inner = (len(matrices(model.activation)) - 1) * moe.hidden_size
    biases = moe.expert_bias * (inner + model.width)
    return feed_forward_parameters(model, moe.hidden_size) + biases


def shared_parameters(model: ModelConfig) -> int:
    """Parameters of the shared experts of one layer, with their gate."""
    moe = model.moe
    gate = model.width * (moe.shared_gate and moe.shared_experts > 0)
    return feed_forward_parameters(model, moe.shared_width) + gate


def router_parameters(model: ModelConfig) -> int:
    """Parameters of one layer's router."""
    moe, router = model.moe, model.moe.built_router
    each = model.width * moe.num_choices
    if not router.learned:
        return 0
    if router.slots:
        slots = capacity(moe.group_size, moe.top_k, moe.num_choices, moe.capacity_factor)
        return each * slots + 1
    return each * (1 + router.learns_noise) + moe.num_choices * router.linear_bias


def merging_products(model: ModelConfig) -> int:
    """Numbers in the matrices that join a token's embedding to a hidden state, in all modules that
    predict further tokens.
    """
    return model.next_tokens * 2 * model.width**2


def patch_numbers(model: ModelConfig) -> int:
    """Numbers in a patch of a classifier's images (X)."""
    return model.patch_side**2 * model.image.channels


def embedding_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Parameters of what makes tokens vectors: a table; or the product and positions of patches."""
    if model.material.language:
        return vocab_size * model.width
    positions = model.image_tokens if model.image_tokens > 1 else 0
    return (patch_numbers(model) + positions) * model.width


def parameters(model: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Parameters of each part of a model; a head that is the embedding counts there. The blocks of
    modules that predict further tokens count as layers, and what joins a token to a hidden state
    there as ``next_tokens``.
    """
    L, routed, head = len(model.routed_blocks), sum(model.routed_blocks), vocab_size * model.width
    dense = feed_forward_parameters(model, model.dense_hidden)
    deltas = count_deltas(model)
    attention = (L - deltas) * (attention_products(model) + attention_biases(model))
    return {
        "embedding": embedding_parameters(model, vocab_size),
        "attention": attention + deltas * (delta_products(model) + delta_extras(model)),
        "dense_feed_forward": (L - routed) * dense,
        "experts": routed * model.moe.num_experts * expert_parameters(model) if routed else 0,
        "shared_experts": routed * shared_parameters(model) if routed else 0,
        "routers": routed * router_parameters(model) if routed else 0,
        "norms": norm_parameters(model),
        **({"next_tokens": merging_products(model)} if model.next_tokens else {}),
        "head": 0 if model.tie_embeddings else head,
    }


def active_parameters(model: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Parameters of each part that one token meets: K experts of a layer, or as many as balancing
    holds on average, and all of the rest.
    """
    met = round(sum(model.routed_blocks) * model.moe.mean_experts * expert_parameters(model))
    return parameters(model, vocab_size) | {"experts": met}


def forward_flops(model: ModelConfig, vocab_size: int, sequence_length: int) -> dict[str, int]:
    """FLOPs a token of each part's products, forward. A multiply-add is 2 FLOPs; embedding
    look-ups, norms, biases, softmax and dispatch are left out; attention scores count in full, and
    the rule of a memory with them. The one head of an image is shared out among its tokens. In
    training, modules that predict further tokens read from the head, too.
    """
    D, L, moe = model.width, len(model.routed_blocks), model.moe
    routed, heads = sum(model.routed_blocks), 1 + model.next_tokens
    widths = model.num_heads * (model.query_head_size + model.value_head_size)
    widths *= model.kind != "mlp"
    deltas = count_deltas(model)
    products = (L - deltas) * attention_products(model) + deltas * delta_products(model)
    scores = (L - deltas) * sequence_length * widths
    scores += deltas * delta_rule_products(model, sequence_length)
    patch = {} if model.material.language else {"embedding": 2 * patch_numbers(model) * D}
    network = feed_forward_parameters(model, moe.hidden_size)
    dense = feed_forward_parameters(model, model.dense_hidden)
    return {
        **patch,
        "attention": 2 * products,
        "attention_scores": 2 * scores,
        "dense_feed_forward": 2 * (L - routed) * dense,
        "experts": round(2 * routed * moe.mean_experts * network),
        "shared_experts": 2 * routed * shared_parameters(model),
        "routers": 2 * routed * router_parameters(model) if routed else 0,
        **({"next_tokens": 2 * merging_products(model)} if model.next_tokens else {}),
        "head": heads * 2 * vocab_size * D // (sequence_length if model.material.classes else 1),
    }


def cost(model: ModelConfig, vocab_size: int, sequence_length: int) -> Cost:
    """Count a model's parameters and FLOPs; see ``forward_flops``. A token counts as meeting K
    experts, also where zero-computation experts or the router make that fewer, unless
    balancing holds their average (``experts_per_token``).
    """
    return Cost(
        parameters_total=sum(parameters(model, vocab_size).values()),
        parameters_active=sum(active_parameters(model, vocab_size).values()),
        flops_per_token=3 * sum(forward_flops(model, vocab_size, sequence_length).values()),
    )
