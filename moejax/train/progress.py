"""What a training shows on the screen: lines that stay, and on a terminal a live one below them."""

import shutil
import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

from moejax.config.measure import Measure
from moejax.runtime.number_words import duration
from moejax.train.metrics import describe_sources

SILENCE = 60.0
"""Seconds after which a line is printed, where there is no live one."""
TICK = 1.0
"""Seconds after which the live line is drawn again, where no step is done."""

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
        self.quiet = quiet
        self.live = sys.stdout.isatty() and not quiet
        # Asked for its size, a terminal that does not know it says 0, and tqdm draws nothing.
        self._bar = tqdm(
            disable=not self.live,
            file=sys.stdout,
            bar_format="{desc}",
            leave=False,
            ncols=1000,
            nrows=20,
        )
        self._steps, self._done, self._measure, self._beside = steps, done, measure, beside
        self._first, self._latest = done, ""
        self._started = self._said = time.monotonic()
        self._waiting: tuple[str, float] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="moejax-progress")
        self._thread.start()

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
        if self.live:
            self._bar.set_description_str(self._describe(), refresh=False)
            self._bar.update(1)

    def end_compilation(self) -> None:
        """The first step is done: tell how long the start took; time left counts from here."""
        self._waiting = None
        self.say(f"first step done after {time.monotonic() - self._started:.0f} s")
        self._started = time.monotonic()
        self._first = self._done + 1

    def say(self, text: str) -> None:
        """Print a line that stays, above the live one."""
        self._said = time.monotonic()
        if self.live:
            self._bar.write(text, file=sys.stdout)
        elif not self.quiet:
            print(text, flush=True)

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
        self._closing.set()
        self._thread.join()
        self._bar.close()

    def _run(self) -> None:
        """Show that something goes on, while nothing else does."""
        while not self._closing.wait(TICK):
            if self.live:
                self._bar.set_description_str(self._describe())
            elif time.monotonic() - self._said > SILENCE:
                self.say(self._describe(width=1000))

    def _describe(self, width: int | None = None) -> str:
        """What goes on, in at most ``width`` columns: what matters most comes first."""
        # A terminal that does not know its width, or knows it as 0, is taken to have 80.
        room = (width or shutil.get_terminal_size().columns) - 1
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
        return text[:room]

    def _say_left(self) -> str:
        """The time left, by the mean of the steps so far."""
        seconds = time.monotonic() - self._started
        left = seconds / max(1, self._done - self._first) * (self._steps - self._done)
        return f"{duration(left)} left" + (self._beside(left) if self._beside else "")
