"""`moejax prune`: a routed model with fewer experts.

Letters: Y: experts that are kept.
"""

import itertools
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import tyro
from jax.sharding import Mesh

from moejax.commands.eval import batch_text
from moejax.commands.export import write_checkpoint
from moejax.commands.model_settings import (
    TextSettings,
    check_batch,
    open_language_model,
)
from moejax.config.checks import check, check_not_negative, check_positive
from moejax.config.errors import ConfigError
from moejax.config.files import read_config_json
from moejax.config.need import Need
from moejax.data.lost_text import LostText
from moejax.hf.configs import write_config
from moejax.hf.files import is_checkpoint
from moejax.hf.peft import refuse_adapters
from moejax.hf.writing import new_directory
from moejax.inference.inference_config import inference_config
from moejax.inference.open_model import OpenModel
from moejax.inference.original_config import find_original
from moejax.inference.prune import choose_kept, count_kept, prune, prune_config
from moejax.lab.evaluation import make_evaluation, sum_batches
from moejax.lab.saliency import By, score_experts, sum_experts
from moejax.models.counts import cost
from moejax.models.layer_runs import leave_out_next_tokens
from moejax.runs.quantised_mark import refuse_quantised
from moejax.runtime.number_words import short
from moejax.train import metrics


@dataclass(frozen=True, kw_only=True)
class PruneSettings(TextSettings):
    """Write a routed model with fewer experts as a checkpoint of Hugging Face, of the same family:
    of each routed layer those that matter most on a text. One half of the text chooses them, and
    the other says what was lost.
    """

    NEEDS: ClassVar[tuple[Need, ...]] = (
        *TextSettings.NEEDS,
        Need(
            ("seed",),
            lambda s: s.by == "random",
            "--by random",
            "give that, too",
            says="has no effect without",
        ),
    )

    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New directory."""
    keep: float = 0.5
    """The share of the experts that stay, in each layer."""
    by: By = "reap"
    """What says how much an expert matters: `reap`, the mean of weight times norm of its output
    over the tokens that chose it (Lasby et al. 2025); `load`, how many these are; `norm`, the sum
    of the norms without weights; `random`."""
    seed: int = 0
    """Of --by random."""
    compare: int = 3
    """Prune at random so many times, to compare with; 0: not."""
    batches: int | None = 64
    """Read so many batches of the text only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.weights is None,
            f"--weights {self.weights}: pruning needs the weights themselves. Leave it out, and"
            f" quantise what is written: moejax quantise OUT OUT-{self.weights}.",
        )
        check_positive("", self, "batches")
        check_not_negative("", self, "seed", "compare")


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What a pruned model is, and what it lost."""

    model: OpenModel
    text: str
    experts: int
    """Of a layer, before."""
    measure: str
    """Bits per byte; or nats per token, where the tokenizer loses a part of the text."""
    whole: float
    pruned: float
    by_chance: list[float]
    """Of the models that were pruned at random."""


def prune_model(settings: PruneSettings) -> None:
    """Choose, prune, write, and say what was lost. Raises ``UserError``."""
    source = settings.path
    refuse_quantised(source, "pruning")
    refuse_adapters(source)
    model, mesh = open_language_model(settings)
    config, params, bias_LE = leave_out_next_tokens(model.config, model.params, model.bias_LE)
    model = replace(model, config=config, params=params, bias_LE=bias_LE)
    try:
        kept = count_kept(config, settings.keep)
        # Before anything is measured: a family must be able to hold what comes out.
        write_config(prune_config(config, kept), find_original(source))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    run = None if is_checkpoint(source) else read_config_json(source / "config.json")
    with new_directory(settings.target) as place:
        found = _prune(settings, model, mesh, kept)
        family = write_checkpoint(place, source, run, found.model)
    figures = figures_json(settings, found)
    print(json.dumps(figures, indent=2) if settings.json else describe(figures), flush=True)
    print(f"written  {settings.target}, as {family}", file=sys.stderr, flush=True)


def _prune(settings: PruneSettings, model: OpenModel, mesh: Mesh, kept: int) -> Pruning:
    config = inference_config(model.config)
    length, rows = settings.length(model), settings.batch_size or model.rows
    check_batch(config, length, rows, mesh)
    lost = LostText()
    batches, about = batch_text(settings, model, length, rows, lost, settings.batches)
    check(
        len(batches) > 1,
        f"the text gives {len(batches)} batch of {rows} sequences of {length} positions: pruning"
        f" needs two, one to choose by and one to evaluate on. Give more text, or a smaller"
        f" --batch-size or --sequence-length.",
    )
    by, tell = batches[::2], batches[1::2]
    name = "loss" if lost.lost_bytes else "bits_per_byte"
    sums_L3E = sum_experts(model, config, mesh, by)

    def make(score_LE: np.ndarray) -> OpenModel:
        expert_LY = choose_kept(score_LE, kept, model.config.moe.expert_groups or 1)
        config, params, bias_LE = prune(model.config, model.params, model.bias_LE, expert_LY)
        return replace(model, config=config, params=params, bias_LE=bias_LE)

    small = make(score_experts(sums_L3E, settings.by, settings.seed))
    evaluate = make_evaluation(small, inference_config(small.config), mesh)
    others = (make(score_experts(sums_L3E, "random", seed)) for seed in range(settings.compare))
    pruned, *by_chance = (
        metrics.loss_metrics(evaluate(one.params, one.bias_LE, tell))[name]
        for one in itertools.chain([small], others)
    )
    return Pruning(
        model=small,
        text=about,
        experts=config.moe.num_experts,
        measure=name,
        whole=metrics.loss_metrics(sum_batches(model, config, mesh, tell))[name],
        pruned=pruned,
        by_chance=by_chance,
    )


def figures_json(settings: PruneSettings, found: Pruning) -> dict[str, Any]:
    """What `--json` prints."""
    model = found.model
    price = cost(model.config, model.vocab_size, sequence_length=1)
    return {
        "model": model.description,
        "data": found.text,
        "by": settings.by,
        "experts": found.experts,
        "kept": model.config.moe.num_experts,
        "parameters_total": price.parameters_total,
        "measure": found.measure,
        "whole": found.whole,
        "pruned": found.pruned,
        "lost": found.pruned - found.whole,
        "random": found.by_chance,
        "lost_at_random": [one - found.whole for one in found.by_chance],
    }


def describe(figures: dict[str, Any]) -> str:
    """The figures as a table."""
    unit = {"loss": "nats per token", "bits_per_byte": "bits per byte"}[figures["measure"]]
    whole, chance = figures["whole"], figures["random"]
    rows = [("all experts", whole), (f"by {figures['by']}", figures["pruned"])]
    rows += [(f"at random, {seed}", one) for seed, one in enumerate(chance)]
    lines = [
        f"model      {figures['model']}",
        f"text       {figures['data']}",
        f"kept       {figures['kept']} of {figures['experts']} experts in each layer:"
        f" {short(figures['parameters_total'], 'kMBT')} parameters",
        "",
        f"{'':14}{unit:>14}{'lost':>10}",
    ]
    lines += [f"{name:14}{value:14.4f}{value - whole:10.4f}" for name, value in rows]
    if len(chance) > 1:
        mean, spread = np.mean(chance), np.std(chance, ddof=1)
        lines.append(f"{'at random':14}{mean:14.4f}{mean - whole:10.4f}  +- {spread:.4f}")
    return "\n".join(lines)
