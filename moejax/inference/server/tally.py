"""What the server itself counts, beside what the engine does."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts since the start, of the one thread that answers."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Answers by path and status."""
    gone: int = 0
    """Clients that went away before their answer was there."""
