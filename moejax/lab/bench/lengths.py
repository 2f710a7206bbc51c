"""Numbers of tokens that vary from text to text: distributions as flags write them."""

from dataclasses import dataclass

import numpy as np

from moejax.config.checks import LARGEST, check
from moejax.config.errors import ConfigError

FORMS = "a number, LOW-HIGH (all alike), geometric:MEAN, or lognormal:MEDIAN:SPREAD"


@dataclass(frozen=True)
class Lengths:
    """A distribution of whole numbers from 1 on."""

    kind: str
    first: float
    second: float = 0.0

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """So many numbers, int64."""
        if self.kind == "uniform":
            return random.integers(int(self.first), int(self.second), count, endpoint=True)
        if self.kind == "geometric":
            return random.geometric(1 / self.first, count)
        drawn = np.rint(random.lognormal(np.log(self.first), self.second, count))
        return np.clip(drawn, 1, LARGEST).astype(np.int64)


def read_lengths(flag: str, words: str) -> Lengths:
    """The distribution that a flag names. Raises ``ConfigError``."""
    name, _, rest = words.partition(":")
    try:
        if name == "geometric":
            found = Lengths(name, float(rest))
        elif name == "lognormal":
            median, spread = map(float, rest.split(":"))
            found = Lengths(name, median, spread)
        else:
            low, dash, high = words.partition("-")
            found = Lengths("uniform", int(low), int(high if dash else low))
    except ValueError as error:
        raise ConfigError(f"{flag} must be {FORMS}, not {words}.") from error
    least = max(1.0, found.first) if found.kind == "uniform" else 0.0
    check(
        1 <= found.first <= LARGEST and least <= found.second <= LARGEST,
        f"{flag} {words}: texts have at least 1 token, and the second number of LOW-HIGH is not the"
        f" smaller one.",
    )
    return found
