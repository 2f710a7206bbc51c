"""The roofline of a training step: the least time of each part on a device, and what binds it.

Williams, Waterman and Patterson 2009: no part is faster than its FLOPs over the peak of products,
or its bytes over the bandwidth of memory; what is sent takes its bytes over that of the links.
"""

from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh

from moejax.config.config import Config
from moejax.lab.plan.device_parameters import (
    local_parameters,
    parameter_shapes,
    trained_shapes,
)
from moejax.lab.plan.part_bytes import part_bytes
from moejax.lab.plan.step_flops import forward_part_flops, muon_flops, part_flops
from moejax.lab.plan.step_sizes import size_step
from moejax.lab.plan.traffic import list_moves
from moejax.models.counts import cost
from moejax.runtime.device_peaks import Peak


@dataclass(frozen=True)
class Row:
    """A part of a step on one device: what it does, and how long each limit makes it."""

    part: str
    flops: float
    bytes: float
    sent: float
    peak: Peak
    dtype: str

    @property
    def seconds(self) -> dict[str, float]:
        """By limit; links without a known bandwidth take no time."""
        return {
            "compute": self.flops / self.peak.flops[self.dtype],
            "memory": self.bytes / self.peak.memory,
            "links": 0.0 if self.peak.links is None else self.sent / self.peak.links,
        }

    @property
    def least(self) -> float:
        """The largest of these times."""
        return max(self.seconds.values())

    @property
    def binds(self) -> str:
        """The limit that it is of."""
        return "links" if self.sent else max(self.seconds, key=lambda limit: self.seconds[limit])


@dataclass(frozen=True)
class Roofline:
    """All parts of a step on one device."""

    rows: list[Row]
    model_flops: float
    """What the model needs of a device: see ``Utilisation.mfu``."""

    @property
    def device_seconds(self) -> float:
        """The least time of all that a device computes and reads, part by part."""
        return sum(row.least for row in self.rows if not row.sent)

    @property
    def link_seconds(self) -> float:
        """The least time of all that it sends."""
        return sum(row.least for row in self.rows if row.sent)

    @property
    def overlapped(self) -> float:
        """The least time of the step, if all is sent while something else is computed."""
        return max(self.device_seconds, self.link_seconds)

    @property
    def apart(self) -> float:
        """The least time of the step, if nothing is."""
        return self.device_seconds + self.link_seconds

    def mfu(self, seconds: float) -> float:
        """The model FLOPs utilisation of a step that takes so long."""
        row = self.rows[0]
        return self.model_flops / seconds / row.peak.flops[row.dtype]

    @property
    def binds(self) -> str:
        """The limit that most of the step's time is of."""
        if self.link_seconds > self.device_seconds:
            return "links"
        inside = [row for row in self.rows if not row.sent]
        by_limit = {
            limit: sum(row.least for row in inside if row.binds == limit)
            for limit in ("compute", "memory")
        }
        return max(by_limit, key=lambda limit: by_limit[limit])


def draw_up(config: Config, vocab_size: int, grid: AbstractMesh, peak: Peak) -> Roofline | None:
    """The roofline of a step on a device of the mesh, the parts with the longest times first. None
    if products of the model's type have no known peak there.
    """
    dtype = config.model.dtype
    if dtype not in peak.flops:
        return None
    shapes, lora = parameter_shapes(config, vocab_size), config.run.lora
    in_training = trained_shapes(config, shapes)
    trained = local_parameters(config, in_training, grid)
    with jax.sharding.use_abstract_mesh(grid):
        step = size_step(config, vocab_size)
        flops, forward = part_flops(config, vocab_size), forward_part_flops(config, vocab_size)
        times = {part: flops[part] / forward[part] for part in flops}
        moved = part_bytes(config, step, trained, times)
        moves = list_moves(config, step, trained)
        flops["optimizer"] = muon_flops(in_training, config.optim)
    rows = [
        Row(part, flops.get(part, 0.0), moved.get(part, 0.0), 0.0, peak, dtype)
        for part in dict.fromkeys([*flops, *moved])
    ]
    rows += [
        Row(f"{move.name}: {move.what}", 0.0, 0.0, move.count * move.bytes, peak, dtype)
        for move in moves
    ]
    length = config.data.sequence_length
    price = cost(config.model, vocab_size, length).flops_per_token
    tokens = config.data.batch_size * length / grid.size
    needed = price * tokens * (1.0 if lora.rank is None else 2 / 3)
    return Roofline(sorted(rows, key=lambda row: -row.least), needed)
