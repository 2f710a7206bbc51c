"""How a layer's tokens travel to experts and back: what every route is told."""

from dataclasses import dataclass
from typing import Literal

from moejax.config.mesh import BY_ROWS, MeshConfig
from moejax.moe.dropout import Dropout
from moejax.routing.seating import Seating

Dispatch = Literal["einsum", "gather", "grouped"]
Exchange = Literal["auto", "all_to_all", "ragged", "all_gather"]
Route = Dispatch | Exchange


@dataclass(frozen=True, kw_only=True)
class Travel:
    """What a route follows. Routes are ``dispatch.einsum.route`` (the reference), and those of
    ``gather``, ``grouped`` and ``parallel.by_rows``: all have its signature and its meaning.
    """

    activation: str
    capacity: int
    """Slots of one expert in one group (C)."""
    seating: Seating = "position"
    dropout: Dropout | None = None
    """Of the experts' hidden numbers."""
    dispatch: Dispatch = "einsum"
    exchange: Exchange = "auto"
    """How tokens meet experts on other devices; ``auto`` where XLA moves them, or nobody need."""
    layout: MeshConfig = MeshConfig()

    @property
    def route(self) -> Route:
        """The name of the route."""
        return self.exchange if self.exchange in BY_ROWS else self.dispatch

    def __post_init__(self) -> None:
        if self.dropout is not None and self.dispatch == "grouped":
            raise ValueError("rows know no expert dropout: use gather or einsum.")
        if self.dropout is not None and self.exchange == "all_to_all":
            raise ValueError("all_to_all has no expert dropout, which draws for all slots at once.")
