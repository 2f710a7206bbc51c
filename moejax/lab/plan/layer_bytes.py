"""The bytes that the gradient of one layer holds: what is kept, and what is needed for a moment."""

from dataclasses import replace

from moejax.config.config import Config
from moejax.lab.plan.residuals import block_residuals
from moejax.lab.plan.step_sizes import FLOAT, StepSizes, count_slots
from moejax.models.layer_runs import list_kinds
from moejax.moe.experts import matrices


def score_bytes(step: StepSizes, itemsize: int) -> float:
    """The scores of one layer, where all are computed at once: a number for each head, position,
    and position that it may see.
    """
    return step.T * step.N * step.heads * itemsize if step.attention == "dense" else 0.0


def attention_kept(config: Config, step: StepSizes) -> float:
    """What the gradient of one attention layer needs, whether it is recomputed or not: queries,
    keys, values and output, and probabilities where all scores are computed at once.
    """
    model = config.model
    A, U = model.query_head_size, model.value_head_size
    latent = step.pieces * (model.attention.kv_rank or 0) + (model.attention.query_rank or 0)
    gate = step.heads * U * model.attention.output_gate
    of_keys = step.pieces * step.kv_heads * (A + U)  # of all pieces
    numbers = step.heads * (A + U) + gate + of_keys + latent + step.D
    return step.T * numbers * step.itemsize + score_bytes(step, step.itemsize)


def attention_workspace(config: Config, step: StepSizes) -> dict[str, float]:
    """What the gradient of one attention layer needs for a moment. With all scores at once, it is
    the gradient of the probabilities, in float32 and in the type of products; block by block, the
    queries, keys, values and output gradient of a sequence, in blocks, and the gradients of the
    first three in float32.
    """
    if step.attention == "dense":
        return {"attention scores": score_bytes(step, FLOAT) + score_bytes(step, step.itemsize)}
    A, U = config.model.query_head_size, config.model.value_head_size
    of_keys, queries = step.kv_heads * (A + U), step.heads / step.pieces
    copies = (queries * (A + U) + of_keys) * step.itemsize
    return {"attention blocks": step.N * (copies + (queries * A + of_keys) * FLOAT)}


def dispatch_bytes(config: Config, step: StepSizes) -> float:
    """The one-hot tensors of the einsum dispatch. For each token and each slot of its group there
    is a truth value for each choice, and a weight in both products.
    """
    if step.dispatch != "einsum":
        return 0.0
    pairs = step.T * config.model.moe.num_experts * count_slots(config)
    return pairs * (config.model.moe.top_k + 2 * step.itemsize)


def experts_kept(config: Config, step: StepSizes) -> float:
    """What the gradient of the experts needs: their inputs and those of the activation function."""
    inner = len(matrices(config.model.activation)) - 1
    return step.slots * (inner * step.hidden + step.D) * step.itemsize


def experts_workspace(config: Config, step: StepSizes) -> float:
    """What the gradient of the experts needs for a moment: either the gradient of their outputs,
    before and after it travels, or that of the hidden numbers. ``gather`` weights the outputs in
    float32.
    """
    ends = (FLOAT if step.dispatch == "gather" else step.itemsize) + step.itemsize
    return step.slots * max(ends * step.D, step.hidden * step.itemsize)


def dense_bytes(config: Config, step: StepSizes, hidden: float) -> float:
    """A dense feed-forward network: its hidden numbers and their gradients."""
    inner = len(matrices(config.model.activation)) - 1
    return step.T * 2 * inner * hidden / step.split * step.itemsize


def layer_workspace(config: Config, step: StepSizes) -> dict[str, float]:
    """What a layer needs at the largest moment of its gradient, by what is computed again: the
    moment of the feed-forward network, or that of attention; or all that a layer with a memory
    keeps. Of a layer that is recomputed from its input, attention's values wait meanwhile.
    """
    model, again = config.model, config.model.remat
    whole = again in ("layer", "offload")
    moments: list[dict[str, float]] = [{}]
    if whole or again == "attention":
        kinds = set(list_kinds(model))
        remembering = [block_residuals(_kept(config), step, kind) for kind in kinds if kind.delta]
        moments += [{"layer with a memory": size} for size in remembering]
    waiting: dict[str, float] = {}
    if set(model.attention_kinds) != {"delta"} and model.kind != "mlp":
        scores = attention_workspace(config, step)
        if whole or again == "attention":
            scores["attention kept"] = attention_kept(config, step)
        if whole:
            waiting = {"attention kept": scores["attention kept"]}
        moments.append(scores)
    moments.append(waiting | feed_forward_workspace(config, step, whole or again == "experts"))
    return max(moments, key=lambda moment: sum(moment.values()))


def _kept(config: Config) -> Config:
    """The config of a layer that keeps all."""
    return replace(config, model=replace(config.model, remat="none", remat_keep=()))


def feed_forward_workspace(config: Config, step: StepSizes, again: bool) -> dict[str, float]:
    """What the gradient of a feed-forward network needs for a moment, whose values are computed
    ``again``, or have been kept.
    """
    model = config.model
    if not any(model.routed_layers):
        return {"dense": dense_bytes(config, step, model.dense_hidden)} if again else {}
    experts = experts_workspace(config, step)
    if not again:
        return {"experts": experts}
    return {
        "dispatch": dispatch_bytes(config, step),
        "experts": experts_kept(config, step) + experts,
        "shared experts": dense_bytes(config, step, model.moe.shared_width),
    }
