"""The least memory that training takes, from the settings alone: what is more than there is, is
refused before anything is compiled. `moejax plan` has the whole account.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp

from moejax.config.config import Config
from moejax.config.model import ModelConfig
from moejax.models.attend.of_model import choose_training_form, has_attention
from moejax.models.counts import parameters
from moejax.runtime.room import check_room, find_room

FLOAT = 4
"""Bytes of a parameter and of a logit."""
FORCE = "--run.force True tries it anyway."


@dataclass(frozen=True)
class Least:
    """Bytes on a device that are there at one moment at least."""

    state: float
    """Parameters and optimizer; of a frozen model its parameters alone: adapters are small."""
    row: float
    """Each row of a batch, of those on the device."""
    rows: dict[str, float]
    """Rows on a device, by the flag that says how many."""


def find_least(config: Config, vocab_size: int, mesh: Mapping[str, int]) -> Least:
    """What a device of the mesh holds at least, if all that can be spread is spread evenly.

    Of a row's activations it counts the residual stream, and what one layer's attention keeps:
    queries, keys, values, output, and, where all scores are computed at once
    (``models/attend/dense.py``), probabilities.
    """
    model, N = config.model, config.positions
    data, expert, split = mesh["data"], mesh["expert"], mesh["model"]
    pieces = config.mesh.context
    spread = expert * split * (data * pieces if config.mesh.spreads else 1)
    moments = 1 if config.optim.optimizer == "muon" else 2
    size = jnp.dtype(model.dtype).itemsize
    attention = size * N * count_kept(model, N, pieces) if has_attention(model) else 0.0
    devices = data * expert
    batch = config.data.batch_size // config.optim.accumulate
    numbers = sum(parameters(model, vocab_size).values())
    frozen = config.run.lora.rank is not None
    moments *= jnp.dtype(config.optim.moments).itemsize
    state = (size if frozen else FLOAT + moments) * numbers
    gathered = size * numbers * (config.mesh.zero1 and not frozen)
    return Least(
        state=state / spread + gathered / (expert * split),
        row=(size * N * model.width + attention / split) / pieces,
        rows={
            "--data.batch-size / --optim.accumulate": batch / devices,
            "--data.eval-batch-size": config.data.eval_batch_size / devices,
        },
    )


def count_kept(model: ModelConfig, N: int, pieces: int) -> int:
    """Numbers that the gradient of one layer's attention needs of each of N positions, where every
    device has all keys and values.
    """
    H, J = model.num_heads, model.key_value_heads
    form, _ = choose_training_form(model, N, pieces)
    each = (H + pieces * J) * (model.query_head_size + model.value_head_size)
    return each + H * N * (form == "dense")


def check_training_room(config: Config, vocab_size: int, mesh: Mapping[str, int]) -> None:
    """Raise ``ConfigError`` for a training that cannot fit into memory, with what would fit. Before
    the vocabulary is known, ``vocab_size`` is 0.
    """
    if config.run.force:
        return
    least, room = find_least(config, vocab_size, mesh), find_room()
    most = room[0] if room else 0.0
    batch = least.row * max(least.rows.values())
    share = (most - batch if most > batch else most) / least.state
    check_room(
        least.state,
        "training, with parameters and optimizer alone,",
        f"{_advise_model(config, vocab_size, share)} {FORCE}",
    )
    for flag, rows in least.rows.items():
        fitting = int((most - least.state) / least.row * mesh["data"] * mesh["expert"])
        check_room(
            least.state + rows * least.row,
            f"training, with one batch of {flag},",
            f"{_advise_batch(config, flag, fitting)} {FORCE}",
        )


def _advise_model(config: Config, vocab_size: int, share: float) -> str:
    """What would fit, if only this share of the model does."""
    found = parameters(config.model, vocab_size)
    total, experts = sum(found.values()), found["experts"] + found["routers"]
    fitting = int(config.model.moe.num_experts * (1 - (1 - share) * total / max(experts, 1)))
    if experts > total / 2 and fitting >= config.model.moe.top_k:
        return f"--model.moe.num-experts {fitting:,} would fit."
    part = max(found, key=lambda name: found[name])
    return (
        f"{share:.2g} times as many parameters would fit: make --model.width, --model.num-layers or"
        f" --model.vocab-size smaller (the largest part is {part.replace('_', ' ')})."
    )


def _advise_batch(config: Config, flag: str, fitting: int) -> str:
    if fitting >= 1:
        return f"{flag} = {fitting:,} would fit, or a shorter {config.model.material.whole_row}."
    return f"Not one {config.row_name} would fit: make {config.model.material.whole_row} smaller."
