"""One evaluation step: a pure function of parameters and batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.moe.balance import Routed
from moejax.train.forward import Batch, batch_sums, report_batch
from moejax.train.reports import BatchReport, ClassCounts


def eval_step(
    params: dict, bias_LE: jax.Array | None, batch: Batch, *, model: nn.Module
) -> tuple[BatchReport, jax.Array | None, ClassCounts | None]:
    """Run one validation batch, with the evaluation capacity. Returns its report, which expert each
    token chose (``chosen_LBNE``), and for images the counts by class.
    """
    sums, routed, logits_BNV = batch_sums(model, params, bias_LE, batch, None)
    chosen_LBNE = None if routed is None else routed.chosen_LBNE
    counts = None if sums.correct is None else count_classes(logits_BNV, batch, routed)
    return report_batch(sums, model.config.moe), chosen_LBNE, counts


def count_classes(logits_B1V: jax.Array, batch: Batch, routed: Routed | None) -> ClassCounts:
    """Count real images by class."""
    real_B = (batch["segments"][:, 0] > 0).astype(jnp.float32)
    class_BV = jax.nn.one_hot(batch["targets"][:, 0], logits_B1V.shape[-1]) * real_B[:, None]
    found_BV = jax.nn.one_hot(logits_B1V[:, 0].argmax(-1), logits_B1V.shape[-1])
    if routed is None:
        return ClassCounts(class_BV.T @ found_BV, None)
    asked_LBE = routed.chosen_LBNE.sum(2, dtype=jnp.float32)
    return ClassCounts(class_BV.T @ found_BV, jnp.einsum("LBE,BV->LEV", asked_LBE, class_BV))
