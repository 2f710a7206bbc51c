"""How long texts take."""

import time


class Stopwatch:
    """Measures several batches: the time until the second token of each, and the time after it."""

    def __init__(self) -> None:
        self.first_seconds, self.seconds, self.tokens = 0.0, 0.0, 0

    def begin(self) -> None:
        """Begin a batch."""
        self._ticks, self._last = 0, time.monotonic()

    def tick(self, tokens: int) -> None:
        """The next tokens are there, of this many rows that go on."""
        now = time.monotonic()
        self._ticks, elapsed, self._last = self._ticks + 1, now - self._last, now
        if self._ticks <= 2:  # both programs have been compiled by then
            self.first_seconds += elapsed
        else:
            self.seconds += elapsed
            self.tokens += tokens
