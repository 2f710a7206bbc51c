"""What a device sends in a training step."""

from dataclasses import dataclass

from moejax.config.config import Config
from moejax.config.model import ModelConfig
from moejax.lab.plan.device_parameters import Parameter
from moejax.lab.plan.step_sizes import FLOAT, StepSizes
from moejax.models.attend.over_context import deals_queries
from moejax.runtime import device_mesh


@dataclass(frozen=True)
class Move:
    """All collectives of one kind in a step."""

    name: str
    what: str
    count: int
    """How many there are."""
    bytes: float
    """How many bytes a device sends in each."""


def count_exchanges(form: str, model: ModelConfig, accumulates: bool) -> tuple[int, int]:
    """How many collectives take the tokens of one routed layer to the experts, and how many take
    results back. Slots or rows travel once in each direction, and so do their gradients. A
    recomputed layer sends its tokens again, unless it keeps them; it brings results back again only
    under ``auto`` and ``all_to_all``, since no gradient needs a sum of rows. Accumulation adds a
    forward pass.
    """
    remat, keep = model.remat in ("layer", "offload", "experts"), model.remat_keep
    there = remat and "expert_inputs" not in keep
    back = remat and "expert_outputs" not in keep and form in ("auto", "all_to_all")
    return 2 + there + accumulates, 2 + back + accumulates


def expected_devices(top_k: int, experts: int, devices: int) -> float:
    """On how many other devices a token's K distinct choices lie on average, if all experts are
    equally likely.
    """
    here = experts // devices
    missed = 1.0
    for i in range(top_k):
        missed *= max(0, experts - here - i) / (experts - i)
    return (devices - 1) * (1 - missed)


def exchange_bytes(config: Config, step: StepSizes, form: str) -> float:
    """Bytes that a device of the mesh in use sends in one collective of a routed layer, under a
    form of expert parallelism: see ``parallel.all_to_all`` and ``parallel.by_rows``.
    """
    moe, n = config.model.moe, device_mesh.expert_devices()
    numbers = {
        "auto": step.slots * (n - 1) / n,
        "all_to_all": step.slots * (n - 1) / n,
        "all_gather": step.T * (n - 1),
        "ragged": step.T * expected_devices(moe.top_k, moe.num_experts, n),
    }
    return numbers[form] * step.D * step.itemsize


def list_moves(config: Config, step: StepSizes, parameters: list[Parameter]) -> list[Move]:
    """The collectives of a step on the mesh in use, without small ones."""
    found = _move_tokens(config, step) if device_mesh.expert_devices() > 1 else []
    found += _gather_context(config, step) if step.pieces > 1 else []
    found += _move_parameters(config, step, parameters)
    found += _move_embeddings(config, step)
    return found + _add_up_over_model_axis(config, step)


EMBEDDINGS = "embeddings to their tokens, and gradients back"
COLLECTIVES_BY_FORM = {
    "auto": ("all-to-all", "all-to-all"),
    "all_to_all": ("all-to-all", "all-to-all"),
    "ragged": ("ragged-all-to-all", "ragged-all-to-all"),
    "all_gather": ("all-gather", "reduce-scatter"),
}
"""Under each form of expert parallelism, the collectives that take tokens to experts and back."""


def _move_tokens(config: Config, step: StepSizes) -> list[Move]:
    routed, parts = sum(config.model.routed_blocks), config.optim.accumulate
    if not routed:
        return []
    times = count_exchanges(step.form, config.model, parts > 1)
    each = exchange_bytes(config, step, step.form)
    what = ("tokens to experts", "what experts give, back")
    return [
        Move(name, said, count * routed * parts * config.mesh.chunks, each)
        for name, said, count in zip(COLLECTIVES_BY_FORM[step.form], what, times, strict=True)
    ]


def _gather_context(config: Config, step: StepSizes) -> list[Move]:
    """Keys and values of the other pieces of sequences, as attention keeps them, and their
    gradients; and queries and outputs, where they are dealt out (``attend.over_context``). Where
    attention is recomputed, it does this again, unless it keeps what it makes of what has come.
    """
    model, n, parts = config.model, step.pieces, config.optim.accumulate
    layers, keep = len(model.routed_blocks) * parts, model.remat_keep
    again = model.remat in ("layer", "offload", "attention")
    twice = int(parts > 1)
    numbers = step.kv_heads * (model.query_head_size + model.value_head_size)
    gathers = 1 + again + twice
    if model.is_latent:
        numbers = (model.attention.kv_rank or 0) + model.rotary_size
        gathers -= again and "queries_keys_values" in keep
    each = step.T * (n - 1) * numbers * step.itemsize
    found = [
        Move("all-gather", "keys and values of other pieces", gathers * layers, each),
        Move("reduce-scatter", "their gradients", layers, each),
    ]
    if not deals_queries(step.attention, step.N // n, n):
        return found
    widths = (("queries", model.query_head_size), ("what they find", model.value_head_size))
    for what, width in widths:
        each = step.T * (n - 1) / n * step.heads * width * step.itemsize
        count = (2 + again + twice) * layers
        found.append(Move("all-to-all", f"{what}, dealt out, and gradients", count, each))
    return found


def _move_parameters(config: Config, step: StepSizes, parameters: list[Parameter]) -> list[Move]:
    """Gradients are added up over the devices that hold copies of a parameter. With FSDP,
    parameters are gathered in the forward and in the backward pass, and their gradients scattered;
    with ZeRO-1, they are gathered once a step.
    """
    found, parts = [], config.optim.accumulate
    copied = sum(2 * FLOAT * p.size * (p.copies - 1) / p.copies for p in parameters)
    if copied:
        found.append(Move("all-reduce", "gradients of parameters that have copies", 1, copied))
    tied = config.model.tie_embeddings  # else rows of the embedding are found where they lie
    gathered = [p for p in parameters if tied or p.name != "embedding_VD"]
    spread = step.itemsize * sum(p.gathered - p.size for p in gathered)
    if spread:
        times = 1 if config.mesh.zero1 else 2 * parts
        found.append(Move("all-gather", "parameters that lie spread", times, spread))
        found.append(Move("reduce-scatter", "their gradients", parts, spread))
    return found


def _add_up_over_model_axis(config: Config, step: StepSizes) -> list[Move]:
    """Each device of the model axis has a part of the heads and of the hidden widths, and their
    contributions to the residual stream are added up: twice a layer in the forward and in the
    backward pass, and once more for attention if the layer is recomputed.
    """
    n, parts = step.split, config.optim.accumulate
    if n == 1:
        return []
    each = 2 * step.T * step.D * step.itemsize * (n - 1) / n
    recomputed = config.model.remat in ("layer", "offload")
    again = recomputed and "attention_output" not in config.model.remat_keep
    times = 4 + again + 2 * (parts > 1)
    count = times * len(config.model.routed_blocks)
    if step.vocabulary < step.V:  # the embedding, and the gradients of what the head reads
        count += 1 + (parts > 1) + 1 + config.model.next_tokens
    return [Move("all-reduce", "sums over the model axis", count * parts, each)]


def _move_embeddings(config: Config, step: StepSizes) -> list[Move]:
    """Where the embedding lies spread, each device finds a part of the width of all tokens'
    embeddings, and sends it to the tokens; so do the gradients come back.
    """
    n, parts = device_mesh.token_devices(), config.optim.accumulate
    if n == 1 or not config.mesh.spreads:
        return []
    each = step.T * step.D * step.itemsize * (n - 1) / n
    return [Move("all-to-all", EMBEDDINGS, (2 + (parts > 1)) * parts, each)]
