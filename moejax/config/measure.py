"""What a model is judged by on held-out data: less is better."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A measure of quality, and its words."""

    key: str
    """Its name in ``metrics.jsonl``."""
    name: str
    unit: str
    """What the data are counted in."""
    material: str
    """What the data are."""
    words: Callable[[float], str]
    """A value for people."""
    digits: Callable[[float], str]
    """A value in a table."""
    difference: Callable[[float], str]
    """A difference in a table."""
    reached: str
    """When held-out data reach a value: a subject, a verb and the value, ``{}``."""
    percent: bool = False
    """Whether figures show it in per cent."""

    @property
    def title(self) -> str:
        """Its name at the head of a figure."""
        return self.name.capitalize() + ", %" * self.percent

    @property
    def scale(self) -> float:
        """What figures multiply it by."""
        return 100.0 if self.percent else 1.0


BITS_PER_BYTE = Measure(
    key="bits_per_byte",
    name="bits per byte",
    unit="tokens",
    material="text",
    words="{:.4f} bits/byte".format,
    digits="{:,.4f}".format,
    difference="{:+.4f}".format,
    reached="text costs the {} bits per byte",
)
ERROR_RATE = Measure(
    key="error_rate",
    name="error rate",
    unit="images",
    material="images",
    words=lambda value: f"{1 - value:.2%} right",
    digits="{:.2%}".format,
    difference="{:+.2%}".format,
    reached="images have the error rate of {}",
    percent=True,
)
