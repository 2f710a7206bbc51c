"""What a training shows on the screen: lines that stay, and on a terminal a live one below them."""

import time
from collections.abc import Callable

from moejax.config.measure import Measure
from moejax.runtime.live_line import LiveLine
from moejax.runtime.number_words import duration
from moejax.train.metrics import describe_sources

Beside = Callable[[float], str]
"""From the seconds that a training has left: what is shown beside them, of a whole study."""


class Progress:
    """Prints a line for each logging interval; on a terminal also a live line with the step, the
    time left, loss, tokens/s and MFU, as far as they have room. If ``quiet``, nothing.
    """

    def __init__(
        self,
        steps: int,
        done: int,
        measure: Measure,
        quiet: bool = False,
        beside: Beside | None = None,
    ) -> None:
        self._steps, self._done, self._measure, self._beside = steps, done, measure, beside
        self._first, self._latest = done, ""
        self._started = time.monotonic()
        self._waiting: tuple[str, float] | None = None
        self._line = LiveLine(self._describe, quiet)

    def begin_compilation(self) -> None:
        """The first step is compiled, which takes long."""
        self.say("compiling the training step ...")
        self.wait_for("compiling the training step")

    def wait_for(self, what: str) -> None:
        """Something begins that may take long, until the next step is done."""
        self._waiting = what, time.monotonic()

    def update(self, loss: float, per_second: float, mfu: float | None = None) -> None:
        """One more step is done."""
        self._done += 1
        self._waiting = None
        # Commas stand between parts; those inside of numbers have no space behind them.
        self._latest = f"loss {loss:.3f}, {per_second:,.0f} {self._measure.unit}/s"
        self._latest += "" if mfu is None else f", MFU {mfu:.1%}"
        self._line.draw()

    def end_compilation(self) -> None:
        """The first step is done: tell how long the start took; time left counts from here."""
        self._waiting = None
        self.say(f"first step done after {time.monotonic() - self._started:.0f} s")
        self._started = time.monotonic()
        self._first = self._done + 1

    def say(self, text: str) -> None:
        """Print a line that stays, above the live one."""
        self._line.say(text)

    def print_interval(self, line: dict) -> None:
        """One line for a logging interval."""
        routing, unit = "", self._measure.unit
        if "dropped_fraction" in line:
            routing = (
                f"  dropped {line['dropped_fraction']:.1%}"
                f"  max violation {line['max_violation']:.2f}  dead {line['dead_experts']}"
            )
        shares = describe_sources(line)
        routing += f"  {shares}" * bool(shares)
        used = f"  MFU {line['mfu']:.1%}" if "mfu" in line else ""
        self.say(
            f"step {line['step']}/{self._steps}  loss {line['loss']:.4f}"
            f"  {self._measure.words(line[self._measure.key])}{routing}"
            f"  {line[f'{unit}_per_second']:,.0f} {unit}/s{used}  {self._say_left()}"
        )

    def close(self) -> None:
        """Take the live line away."""
        self._line.close()

    def _describe(self, room: int) -> str:
        """What goes on, in so many columns: what matters most comes first."""
        parts = [f"step {self._done}/{self._steps}"]
        if self._waiting is not None:
            what, since = self._waiting
            parts.insert(0, f"{what}: {duration(int(time.monotonic() - since))}")
        elif self._done > self._first:
            parts.append(self._say_left())
        parts += self._latest.split(", ") if self._latest else []
        text = parts[0]
        for part in parts[1:]:
            text += f"  {part}" if len(text) + len(part) + 2 <= room else ""
        return text

    def _say_left(self) -> str:
        """The time left, by the mean of the steps so far."""
        seconds = time.monotonic() - self._started
        left = seconds / max(1, self._done - self._first) * (self._steps - self._done)
        return f"{duration(left)} left" + (self._beside(left) if self._beside else "")
