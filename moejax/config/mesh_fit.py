"""What of a model must fit the device mesh."""

import math

from moejax.config.checks import check
from moejax.config.mesh import BY_ROWS, MeshConfig
from moejax.config.model import ModelConfig


def check_mesh(model: ModelConfig, mesh: MeshConfig) -> None:
    """What is shared out over an axis must divide by it, and the form must carry the router."""
    moe = model.moe
    heads = {"--model.num-heads": model.num_heads, "--model.num-kv-heads": model.key_value_heads}
    shared_out = {} if model.kind == "mlp" else heads
    if "delta" in model.attention_kinds:
        shared_out["--model.delta.key-heads"] = model.delta_sizes.key_heads
    if not all(model.routed_layers):
        shared_out["--model.dense-hidden-size"] = model.dense_hidden
    if moe.every:
        shared_out["--model.moe.hidden-size"] = moe.hidden_size
        shared_out["--model.moe.shared-hidden-size"] = moe.shared_width
    for flag, number in shared_out.items():
        check(
            number % mesh.model == 0,
            f"{flag} {number} is not divisible by --mesh.model {mesh.model}, which shares it out:"
            f" make it a multiple of {mesh.model}, or --mesh.model a divisor of {number}.",
        )
    if not moe.every:
        return
    check(
        not moe.expert_bias or mesh.model == 1,
        f"--model.moe.expert-bias cannot be shared out over --mesh.model {mesh.model}: set it to 1,"
        f" and spread experts (--mesh.expert) instead.",
    )
    E, groups = moe.num_experts, moe.expert_groups
    check(
        E % mesh.expert == 0,
        f"--model.moe.num-experts {E} is not divisible by --mesh.expert {mesh.expert}, which shares"
        f" them out: make it a multiple of {mesh.expert}, or --mesh.expert a divisor of {E}.",
    )
    check(
        groups is None or groups % mesh.expert == 0 or mesh.expert % groups == 0,
        f"--model.moe.expert-groups {groups} cannot stand on --mesh.expert {mesh.expert} devices:"
        f" let a device hold whole groups, or a group whole devices (one number a multiple of the"
        f" other).",
    )
    check_form(model, mesh)


def check_pieces(model: ModelConfig, pieces: int, length: int) -> None:
    """Sequences of this length must be cut into so many pieces, with whole routing groups in each,
    and every layer must be able to look beyond its own.
    """
    if pieces == 1:
        return
    moe, flag = model.moe, f"--mesh.context {pieces}"
    check(
        model.material.language,
        f"{flag} splits sequences of text, and --model.kind {model.kind} sees images: leave it out,"
        f" and spread images over --mesh.data.",
    )
    check(
        "delta" not in model.attention_kinds,
        f"{flag} splits sequences, but layers with a memory (--model.attention.kinds delta) read"
        f" them from the first position to the last: spread their heads over --mesh.model instead.",
    )
    check(
        length % pieces == 0,
        f"--data.sequence-length {length} cannot be cut into the pieces of {flag}: make it a"
        f" multiple of {pieces}.",
    )
    piece = length // pieces
    check(
        not moe.every or piece % moe.group_size == 0,
        f"--model.moe.group-size {moe.group_size} must divide the {piece} positions that each"
        f" device has of a sequence (--data.sequence-length {length} / {flag}): make it"
        f" {math.gcd(piece, moe.group_size)}, say.",
    )
    check(
        moe.expert_dropout == 0 or not moe.every,
        f"--model.moe.expert-dropout {moe.expert_dropout} draws for all slots at once, which {flag}"
        f" orders anew: set it to 0.",
    )
    check(
        model.next_tokens <= piece,
        f"--model.next-tokens {model.next_tokens} looks beyond the {piece} positions of the next"
        f" device ({flag}): make it less.",
    )


def check_form(model: ModelConfig, mesh: MeshConfig) -> None:
    """Slots need a form of dispatch with slots, rows one without; rows are sent by tokens."""
    moe, form = model.moe, f"--mesh.expert-parallel {mesh.expert_parallel}"
    router = moe.built_router
    if mesh.expert_parallel == "all_to_all":
        check(
            moe.dispatch != "grouped",
            f"{form} exchanges slots, but --model.moe.dispatch grouped has none: take ragged or"
            f" all_gather, or --model.moe.dispatch gather.",
        )
        check(
            moe.expert_dropout == 0,
            f"--model.moe.expert-dropout {moe.expert_dropout} draws for all slots at once, which"
            f" {form} spreads: take auto, or 0.",
        )
    if mesh.expert_parallel in BY_ROWS:
        check(
            moe.dispatch in ("auto", "grouped"),
            f"{form} sends rows, but --model.moe.dispatch {moe.dispatch} fills slots: take"
            f" --model.moe.dispatch grouped, or --mesh.expert-parallel all_to_all.",
        )
        check(
            not router.slots and not router.experts_choose,
            f"{form} follows the tokens' choices, but with --model.moe.router {moe.router} tokens"
            f" do not choose: take all_to_all.",
        )
        check(
            moe.expert_dropout == 0,
            f"--model.moe.expert-dropout {moe.expert_dropout} has no place in {form}: take auto, or"
            f" 0.",
        )
