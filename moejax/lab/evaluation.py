"""A trained model on batches of text or images: what it gives, in figures and in words."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from moejax.config.errors import ConfigError
from moejax.config.model import ModelConfig
from moejax.data.batches import Batch
from moejax.data.lost_text import LostText, describe_share
from moejax.inference.inference_config import inference_layout
from moejax.inference.open_model import OpenModel
from moejax.models.by_kind import build
from moejax.moe.lying import lie_quantised
from moejax.runtime import batch_rows, partition
from moejax.runtime.number_words import duration
from moejax.train import metrics
from moejax.train.eval_step import eval_step
from moejax.train.totals import Totals, add_totals, sum_batch


def evaluate_model(
    model: OpenModel, config: ModelConfig, mesh: Mesh, batches: Sequence[Batch], lost: LostText
) -> dict[str, Any]:
    """The figures of a model over all batches. ``config``: how it is run, with or without drops.
    If the tokenizer has ``lost`` a part of the text, there are no bits per byte: the tokens do not
    tell what the text was.
    """
    totals = sum_batches(model, config, mesh, batches)
    figures = {
        **({"tokens": totals["targets"]} if "text_bytes" in totals else {}),
        "batches": len(batches),
        **metrics.count_evaluated(totals),
        **metrics.loss_metrics(totals),
        **metrics.ahead_metrics(totals),
        **metrics.router_metrics(totals, config.moe.num_experts),
    }
    if "text_bytes" in totals:
        figures["lost_fraction"] = lost.share
        if lost.lost_bytes:
            figures["bits_per_byte"] = None
    return figures


def sum_batches(
    model: OpenModel, config: ModelConfig, mesh: Mesh, batches: Sequence[Batch]
) -> Totals:
    """The sums over all batches, with a bar that shows how far it is."""
    return make_evaluation(model, config, mesh)(model.params, model.bias_LE, batches)


def make_evaluation(
    model: OpenModel, config: ModelConfig, mesh: Mesh
) -> Callable[[dict, jax.Array | None, Sequence[Batch]], Totals]:
    """``(params, bias_LE, batches) -> `` the sums over all batches, for any parameters of a model
    like this one: compiled once.
    """
    built = build(config, model.vocab_size, inference_layout(model.layout))
    everywhere = partition.activation_sharding(mesh, "everywhere")
    step = jax.jit(
        lambda params, *rest: eval_step(lie_quantised(params), *rest, model=built)[0],
        out_shardings=everywhere,
    )

    def evaluate(params: dict, bias_LE: jax.Array | None, batches: Sequence[Batch]) -> Totals:
        totals = None
        with jax.set_mesh(mesh):
            for batch in tqdm(batches, disable=None, unit="batch", leave=False):
                sums = step(params, bias_LE, batch_rows.place_batch(mesh, batch))
                totals = add_totals(totals, sum_batch(sums))
        if totals is None:
            raise ConfigError("the text gives no tokens: nothing can be evaluated on it.")
        return totals

    return evaluate


def describe_figures(figures: dict[str, Any], config: ModelConfig) -> str:
    """The figures in words."""
    of_images = "accuracy" in figures
    rows = "images"
    if not of_images:
        rows = f"sequences of {figures['sequence_length']:,} positions"
    lines = [
        f"model      {figures['model']}",
        f"{'images' if of_images else 'text':<11}{figures['data']}",
        f"           {figures['batches']:,} batches of {rows}, in {duration(figures['seconds'])}",
    ]
    if "max_violation" in figures:
        experts = sum(config.routed_blocks) * config.moe.num_choices
        lines.append(
            f"router     max violation {figures['max_violation_global']:.2f}"
            f" ({figures['max_violation']:.2f} in a batch), dead experts"
            f" {figures['dead_experts']} of {experts}, dropped {figures['dropped_fraction']:.1%}"
        )
    if of_images:
        lines.append(f"accuracy   {metrics.describe_accuracy(figures)}, loss {figures['loss']:.4f}")
        return "\n".join(lines)
    lines.append(f"perplexity {figures['perplexity']:.3f} a token ({figures['tokens']:,} tokens)")
    lines += describe_drafts(figures, config.next_tokens)
    bits = figures["bits_per_byte"]
    if bits is None:
        bits = f"none: the tokenizer loses {describe_share(figures['lost_fraction'])} of"
        lines.append(f"bits/byte  {bits} the {figures['text_bytes']:,} bytes of text")
    else:
        lines.append(f"bits/byte  {bits:.4f} ({figures['text_bytes']:,} bytes)")
    return "\n".join(lines)


def describe_drafts(figures: dict[str, Any], modules: int) -> list[str]:
    """A line for each module that predicts a further token: how often its draft is accepted."""
    return [
        f"draft      of the token {number + 1} ahead: {figures[f'next_{number}_accepted']:.1%}"
        f" accepted, loss {figures[f'next_{number}_loss']:.4f}"
        for number in range(1, modules + 1)
    ]
