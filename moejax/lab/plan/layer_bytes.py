"""The bytes that the gradient of one layer holds: what is kept, and what is needed for a moment."""

from moejax.config.config import Config
from moejax.lab.plan.residuals import block_residuals
from moejax.lab.plan.step_sizes import FLOAT, StepSizes, count_slots
from moejax.models.layer_runs import list_kinds
from moejax.moe.experts import matrices


def score_bytes(config: Config, step: StepSizes, itemsize: int) -> float:
    """The scores of one layer: a number for each head, position, and position that it may see."""
    return step.T * step.N * step.heads * itemsize


def attention_kept(config: Config, step: StepSizes) -> float:
    """What the gradient of one attention layer needs, whether it is recomputed or not: queries,
    keys, values, probabilities and output.
    """
    model = config.model
    A, U = model.query_head_size, model.value_head_size
    latent = (model.attention.kv_rank or 0) + (model.attention.query_rank or 0)
    gate = step.heads * U * model.attention.output_gate
    numbers = step.heads * (A + U) + gate + step.kv_heads * (A + U) + latent + step.D
    return step.T * numbers * step.itemsize + score_bytes(config, step, step.itemsize)


def attention_workspace(config: Config, step: StepSizes) -> float:
    """What the gradient of one attention layer needs for a moment: the gradient of the
    probabilities, in float32 and in the type of products.
    """
    return score_bytes(config, step, FLOAT) + score_bytes(config, step, step.itemsize)


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
    """What a layer needs at the largest moment of its gradient, if it is recomputed from its input:
    the moment of the feed-forward network, when attention's values already wait, or that of
    attention; or all that a layer with a memory keeps.
    """
    model, moe = config.model, config.model.moe
    kinds = set(list_kinds(model))
    remembering = [block_residuals(config, step, kind) for kind in kinds if kind.delta]
    feed_forward, moments = {}, [{"layer with a memory": size} for size in remembering]
    if not all(kind.delta for kind in kinds):
        attention, scores = attention_kept(config, step), attention_workspace(config, step)
        feed_forward["attention kept"] = attention
        moments.append({"attention kept": attention, "attention scores": scores})
    if any(model.routed_layers):
        feed_forward |= {
            "dispatch": dispatch_bytes(config, step),
            "experts": experts_kept(config, step) + experts_workspace(config, step),
            "shared experts": dense_bytes(config, step, moe.shared_width),
        }
    else:
        feed_forward["dense"] = dense_bytes(config, step, model.dense_hidden)
    return max([feed_forward, *moments], key=lambda moment: sum(moment.values()))


def workspace_if_saved(config: Config, step: StepSizes) -> dict[str, float]:
    """What the gradient of a layer needs for a moment, if the forward pass has saved all else."""
    found = {}
    if set(config.model.attention_kinds) != {"delta"}:
        found["attention scores"] = attention_workspace(config, step)
    if any(config.model.routed_layers):
        found["experts"] = experts_workspace(config, step)
    return dict(sorted(found.items(), key=lambda item: -item[1])[:1])
