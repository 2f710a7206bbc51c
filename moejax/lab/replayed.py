"""A model on texts with recorded routes: how well it does with these, and with its own."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moejax.config.model import ModelConfig
from moejax.data.batches import Batch
from moejax.inference.inference_config import inference_layout
from moejax.inference.open_model import OpenModel
from moejax.models.by_kind import build
from moejax.moe.lying import lie_quantised
from moejax.runtime import batch_rows, partition
from moejax.train import metrics
from moejax.train.eval_step import eval_step
from moejax.train.totals import add_totals, sum_batch


def compare_with_own(
    model: OpenModel, config: ModelConfig, mesh: Mesh, batches: Sequence[Batch]
) -> dict[str, Any]:
    """The figures of batches with ``routes`` if the model chooses by itself: its perplexity then,
    and the share of the recorded choices that it makes, too, in all and by layer.
    """
    built = build(config, model.vocab_size, inference_layout(model.layout))
    everywhere = partition.activation_sharding(mesh, "everywhere")
    L, E = sum(config.routed_layers), config.moe.num_choices

    def step(params: dict, bias_LE: jax.Array | None, batch: dict[str, jax.Array]) -> Any:
        own = {name: x for name, x in batch.items() if name != "routes"}
        report, chosen_LBNE, _ = eval_step(lie_quantised(params), bias_LE, own, model=built)
        assert chosen_LBNE is not None  # as routes are those of routed layers
        recorded_BNLE = (batch["routes"][..., None] == jnp.arange(E)).any(-2)
        recorded_LBNE = jnp.moveaxis(recorded_BNLE, 2, 0)
        both_LBNE = recorded_LBNE & chosen_LBNE[:L]
        return report, (both_LBNE.sum((1, 2, 3)), recorded_LBNE.sum((1, 2, 3)))

    compiled = jax.jit(step, out_shardings=everywhere)
    totals, counts_2L = None, np.zeros((2, L))
    with jax.set_mesh(mesh):
        for batch in batches:
            placed = batch_rows.place_batch(mesh, batch)
            sums, counts = compiled(model.params, model.bias_LE, placed)
            totals = add_totals(totals, sum_batch(sums))
            counts_2L += np.stack([np.asarray(count, np.float64) for count in counts])
    assert totals is not None  # a recording has at least one text
    found, (both_L, recorded_L) = metrics.loss_metrics(totals), counts_2L
    return {
        "own_routes_loss": found["loss"],
        "own_routes_perplexity": found["perplexity"],
        "agreement": float(both_L.sum() / max(1.0, recorded_L.sum())),
        "agreement_by_layer": (both_L / np.maximum(recorded_L, 1)).tolist(),
    }


def describe_replay(figures: dict[str, Any], config: ModelConfig) -> str:
    """One line of these figures."""
    by_layer = figures["agreement_by_layer"]
    layers = [i for i, routed in enumerate(config.routed_layers) if routed]
    least = int(np.argmin(by_layer))
    return (
        f"routes     as recorded; its own are the same in {figures['agreement']:.1%} of the choices"
        f" (fewest in layer {layers[least]}: {by_layer[least]:.1%}), and give perplexity"
        f" {figures['own_routes_perplexity']:.3f}"
    )
