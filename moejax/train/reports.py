"""What a step says about itself, as arrays on the devices.

Letters: J: sources of a mixture; P: modules that predict further tokens.
"""

from dataclasses import dataclass

import jax

from moejax.moe.balance import RouterStats


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AheadSums:
    """Sums over what the modules above the last layer predict."""

    nats_P: jax.Array
    """Cross-entropy of each module."""
    targets_P: jax.Array
    """Its targets: the first module's are the tokens after next inside the same document."""
    accepted_P: jax.Array | None
    """In evaluations: how many of them are predicted, as most probable, as the model itself
    predicts them when it has seen the tokens between."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    """What a batch adds up to; sums of parts are the sum of the whole."""

    loss: jax.Array
    """What the predictions add to the objective, with its gradient: see ``objective``."""
    nats: jax.Array
    """Cross-entropy over all targets."""
    log_z_squared: jax.Array
    """Squared logs of the sums of exponentials of logits, over all targets."""
    targets: jax.Array
    """Target tokens (images: one each), padding left out."""
    text_bytes: jax.Array | None
    """Bytes of text that the targets stand for; None for images."""
    router: RouterStats | None
    """Router sums of each routed layer (a leading L, no sequences)."""
    scoped_loss_L: jax.Array | None = None
    """Balance losses of sequences or devices, added up, where the scope is not the batch."""
    scopes: jax.Array | None = None
    """Sequences or devices that had tokens."""
    correct: jax.Array | None = None
    """Images whose class got the highest probability; None for text."""
    ahead: AheadSums | None = None
    """Of a model that predicts further tokens."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BatchReport:
    """One batch: its sums, and what does not add up over batches."""

    sums: Sums
    losses: dict[str, jax.Array]
    """Auxiliary losses without their weights, mean over routed layers."""
    max_violation: jax.Array | None
    """Mean over routed layers."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepReport:
    """One training step."""

    batch: BatchReport
    gradient_norm: jax.Array
    learning_rate: jax.Array
    """Of AdamW; the other groups' follow it in proportion."""
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    signal: jax.Array | None = None
    """The signal to stop that any process had before the step, or 0."""
    rows_J: jax.Array | None = None
    """Of a mixture: sequences of each source, int32."""
    sparsity_weight: jax.Array | None = None
    """The coefficient that the sparsity loss had, where it moves."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassCounts:
    """How a batch of images was sorted."""

    confusion_VV: jax.Array
    """Images by their class (rows) and by the class that the model gave them."""
    asked_LEV: jax.Array | None
    """Choices of each expert by the image's class; None for a dense model."""
