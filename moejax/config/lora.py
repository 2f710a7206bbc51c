"""Settings of low-rank adapters, which fine-tune a model that itself stays as it is."""

from dataclasses import dataclass
from typing import Literal

from moejax.config.checks import check, check_positive, check_sizes, check_types

PLACES = ("attention", "experts", "dense")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, Hu et al. 2021): W x + (alpha / rank) B A x, of which A and B alone
    are trained. W is the model of --run.init-from.
    """

    rank: int | None = None
    """Rows of A; None: no adapters, all parameters are trained."""
    alpha: float | None = None
    """What adapters add is multiplied by this over the rank; by default the rank."""
    on: str = ",".join(PLACES)
    """Which matrices have adapters, with commas between: `attention` (not layers with a memory in
    its place), `experts` (each routed expert its own), `dense` (dense and shared feed-forward
    networks)."""
    base: Literal["full", "int8", "int4", "fp8"] = "full"
    """How the frozen matrices are kept: in the type of the activations, or in 8 or 4 bits (QLoRA,
    Dettmers et al. 2023), decoded where they are used."""
    routers: bool = False
    """Train the routers themselves, with their selection bias; else they stay as they are."""

    def __post_init__(self) -> None:
        at = "run.lora"
        check_types(at, self)
        check_sizes(at, self, "rank")
        check_positive(at, self, "alpha")
        places = self.places
        wrong = [place for place in places if place not in PLACES]
        check(
            bool(places) and not wrong and len(set(places)) == len(places),
            f"--{at}.on must name some of {', '.join(PLACES)}, each once, with commas between, not"
            f" {self.on!r}.",
        )

    @property
    def trains_routers(self) -> bool:
        """Whether routers learn: with all other parameters, or beside adapters."""
        return self.rank is None or self.routers

    @property
    def places(self) -> tuple[str, ...]:
        """Where adapters are."""
        return tuple(place.strip() for place in self.on.split(","))

    @property
    def scale(self) -> float:
        """What multiplies B A."""
        assert self.rank is not None  # else there is nothing to multiply
        return (self.rank if self.alpha is None else self.alpha) / self.rank
