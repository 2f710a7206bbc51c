"""One evaluation step: a pure function of parameters and batch."""

from typing import Any

import jax
import jax.numpy as jnp

from moejax.moe.balance import Routed
from moejax.train.forward import Batch, batch_sums, report_batch
from moejax.train.reports import BatchReport, ClassCounts


def eval_step(
    params: dict, bias_LE: jax.Array | None, batch: Batch, *, model: Any
) -> tuple[BatchReport, jax.Array | None, ClassCounts | None]:
    """Run one validation batch, with the evaluation capacity. Returns its report, which expert each
    token chose (``chosen_LBNE``), and for images the counts by class.
    """
    sums, routed, best_BN = batch_sums(model, params, bias_LE, batch, None)
    chosen_LBNE = None if routed is None else routed.chosen_LBNE
    counts = None
    if sums.correct is not None:
        assert best_BN is not None
        counts = count_classes(best_BN[:, 0], model.vocab_size, batch, routed)
    return report_batch(sums, model.config.moe), chosen_LBNE, counts


def count_classes(best_B: jax.Array, V: int, batch: Batch, routed: Routed | None) -> ClassCounts:
    """Count real images by class, and by the class that got the highest probability."""
    real_B = (batch["segments"][:, 0] > 0).astype(jnp.float32)
    class_BV = jax.nn.one_hot(batch["targets"][:, 0], V) * real_B[:, None]
    found_BV = jax.nn.one_hot(best_B, V)
    if routed is None:
        return ClassCounts(class_BV.T @ found_BV, None)
    asked_LBE = routed.chosen_LBNE.sum(2, dtype=jnp.float32)
    return ClassCounts(class_BV.T @ found_BV, jnp.einsum("LBE,BV->LEV", asked_LBE, class_BV))
