"""Where each number of a plan comes from: its arithmetic, in words and numbers."""

from moejax.config.model import ModelConfig
from moejax.models.counts import (
    active_parameters,
    count_deltas,
    delta_rule_products,
    parameters,
)
from moejax.moe.experts import matrices
from moejax.runtime.number_words import short


def explain_parameters(model: ModelConfig, vocab_size: int) -> dict[str, str]:
    """The arithmetic of the parameters of each part, and of both totals."""
    moe, D, L, V = model.moe, model.width, len(model.routed_blocks), vocab_size
    routed, m = sum(model.routed_blocks), len(matrices(model.activation))
    P = model.next_tokens
    expert = f"{m} matrices of {D:,} x {moe.hidden_size:,}"
    tied = "none: the embedding is the head, too"
    router = "" if moe.built_router.learned else ": this router learns nothing"
    return {
        "embedding": f"{V:,} tokens x {D:,}",
        "attention": explain_layers(model),
        "dense_feed_forward": f"{L - routed} layers x {m} of {D:,} x {model.dense_hidden:,}",
        "experts": f"{routed} layers x {moe.num_experts} experts x {expert};"
        f" a token meets {moe.mean_experts:g} of the {moe.num_experts}",
        "shared_experts": f"{routed} layers x {m} matrices of {D:,} x {moe.shared_width:,}",
        "routers": f"{routed} layers x {D:,} x {moe.num_choices} choices{router}",
        "norms": f"{explain_norms(model)} and {D:,} at the end, and those inside attention",
        "next_tokens": f"{P} modules x {2 * D:,} x {D:,}; their blocks count as layers",
        "head": tied if model.tie_embeddings else f"{D:,} x {V:,} tokens",
    } | (explain_totals(model, V) if routed else {})


def explain_norms(model: ModelConfig) -> str:
    """The norms of all layers."""
    D, L, routed = model.width, len(model.routed_blocks), sum(model.routed_blocks)
    each = f"{L} layers x {4 if model.norm_place == 'sandwich' else 2} x {D:,}"
    of_experts = f", {routed} routed layers x {D:,}" * (model.norm_place == "pre_and_experts")
    ahead = f", {model.next_tokens} modules x 3 x {D:,}" * (model.next_tokens > 0)
    return each + of_experts + ahead


def explain_layers(model: ModelConfig) -> str:
    """The matrices of all layers that mix positions, with attention or with a memory."""
    D, deltas, (J, H, A, U, _) = model.width, count_deltas(model), model.delta_sizes
    attending, found = len(model.routed_blocks) - deltas, []
    if attending:
        found.append(f"{attending} layers x ({explain_attention(model)})")
    if deltas:
        found.append(
            f"{deltas} layers with a memory x ({D:,} x (2 x {J * A:,} queries and keys, 3 x"
            f" {H * U:,} values, gates and out, 2 x {H}), and convolutions)"
        )
    return "; ".join(found)


def explain_attention(model: ModelConfig) -> str:
    """The matrices of one attention layer."""
    D, H, J = model.width, model.num_heads, model.key_value_heads
    A, U, settings = model.query_head_size, model.value_head_size, model.attention
    gate = f", {D:,} x {H * U:,} gate" * settings.output_gate
    if settings.kv_rank is None:
        keys = f"2 x {D:,} x {J * A:,} keys and values"
        return f"{D:,} x {H * A:,} queries, {keys}, {H * A:,} x {D:,} out{gate}"
    rank = settings.query_rank
    query = f"{D:,} x {H * A:,}" if rank is None else f"{D:,} x {rank:,} and {rank:,} x {H * A:,}"
    return (
        f"{query} queries, {D:,} x {settings.kv_rank + model.rotary_size:,} latent,"
        f" {settings.kv_rank:,} x {H * (model.plain_head_size + U):,} keys and values,"
        f" {H * U:,} x {D:,} out{gate}"
    )


def explain_totals(model: ModelConfig, vocab_size: int) -> dict[str, str]:
    """Why E experts are not E whole models, and a token with K experts does not meet K models."""
    moe, every = model.moe, parameters(model, vocab_size)
    E, K, experts = moe.num_experts, moe.top_k, every["experts"]
    rest, met = sum(every.values()) - experts, active_parameters(model, vocab_size)["experts"]
    one = experts / E
    return {
        "total": f"{E} x {short(one)} of experts + {short(rest)} of the rest"
        f" = {short(experts + rest)}."
        f" Only experts are there {E} times; {E} whole models of one expert each,"
        f" {short(one + rest)}, would be {short(E * (one + rest))}",
        "active": f"{K} x {short(one)} of experts + {short(rest)} of the rest"
        f" = {short(met + rest)}."
        f" Only experts are met {K} times; {K} whole models would be {short(K * (one + rest))}",
    }


def explain_flops(model: ModelConfig, sequence_length: int) -> dict[str, str]:
    """The arithmetic of each part's forward FLOPs for a token."""
    L, H, deltas = len(model.routed_blocks), model.num_heads, count_deltas(model)
    A, U = model.query_head_size, model.value_head_size
    rule = (
        f"2 x {deltas} layers x {delta_rule_products(model, sequence_length):,} of the delta rule"
    )
    scores = (
        f"2 x {L - deltas} layers x {sequence_length:,} positions x {H} heads x ({A} + {U}), what a"
        f" mask hides included"
    )
    plain = "2 x the numbers of its matrices: a multiply-add is 2 FLOPs"
    return {
        "attention": plain,
        "attention_scores": "; ".join([scores] * (deltas < L) + [rule] * (deltas > 0)),
        "dense_feed_forward": plain,
        "experts": f"2 x the numbers of {model.moe.mean_experts:g} experts a layer",
        "shared_experts": plain,
        "routers": plain,
        "next_tokens": plain,
        "head": plain + f", {1 + model.next_tokens} times" * (model.next_tokens > 0),
    }


MEMORY_REASONS = {
    "weights": "4 bytes for each parameter that lies here: parameters are float32",
    "optimizer, adamw": "two moments for each parameter that AdamW moves, in the type of"
    " --optim.moments",
    "optimizer, muon": "one momentum for each parameter that Muon moves, in the type of"
    " --optim.moments",
    "gradients": "4 bytes for each parameter; while layers are gone through, the embedding's are"
    " still to come",
    "gradients on their way": "4 bytes for each parameter of a layer that other devices have, too",
    "copies of weights": "all layers' in the type of products, made before the loop over layers",
    "gathered weights": "one layer's matrices, which FSDP brings together, and their gradients",
    "saved for backward": "what layers keep from one pass to the other",
    "residual stream, mask": "a token's numbers and their gradient, and what positions may see",
    "attention kept": "queries, keys, values and output; and the probabilities of all heads, if"
    " --model.attention.form is dense",
    "layer with a memory": "all that its gradient needs, chunk by chunk",
    "attention scores": "the gradient of the probabilities, in float32 and in the type of products",
    "attention blocks": "one sequence's queries, keys and values in blocks, and their gradients",
    "dispatch": "one-hot tensors: a truth for each choice and two weights, for each token and slot",
    "experts": "inputs, hidden numbers and gradients of all slots or rows here",
    "shared experts": "hidden numbers and their gradients",
    "dense": "hidden numbers and their gradients",
    "logits of a chunk": "tokens of a chunk x vocabulary here, in float32, and in the type of"
    " products if it is another",
    "gradient of the head": "4 bytes for each number of the head here: the chunks' are added up",
    "states and their gradient": "what the head reads, of the model and of each further token",
}
"""What each line on memory is, by its name."""
