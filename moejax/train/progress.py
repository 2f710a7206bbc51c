"""What a training shows on the screen: a live line on a terminal, a plain line elsewhere."""

import sys
import time

from tqdm import tqdm

from moejax.config.measure import Measure
from moejax.runtime.number_words import duration


class Progress:
    """A live line with step, loss, tokens/s and time left; if redirected, a line an interval; if
    ``quiet``, nothing.
    """

    def __init__(self, steps: int, done: int, measure: Measure, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = sys.stdout.isatty() and not quiet
        self._bar = tqdm(
            total=steps,
            initial=done,
            disable=not self.live,
            file=sys.stdout,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} steps |{bar}| {remaining} left{postfix}",
            leave=False,
        )
        self._steps, self._done, self._measure = steps, done, measure
        self._started = time.monotonic()

    def update(self, loss: float, per_second: float) -> None:
        """One more step is done."""
        self._done += 1
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, {per_second:,.0f} {self._measure.unit}/s", refresh=False
        )
        self._bar.update(1)

    def end_compilation(self) -> None:
        """The first step is done: tell how long the start took; time left counts from here."""
        self.say(f"first step done after {time.monotonic() - self._started:.0f} s")
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line that stays, above the live one."""
        if self.live:
            self._bar.write(text, file=sys.stdout)
        elif not self.quiet:
            print(text, flush=True)

    def print_interval(self, line: dict, done_before: int) -> None:
        """One line for a logging interval, where there is no live line."""
        if self.live or self.quiet:
            return
        steps_done = max(1, self._done - done_before)
        seconds = time.monotonic() - self._started
        left = seconds / steps_done * (self._steps - self._done)
        routing, unit = "", self._measure.unit
        if "dropped_fraction" in line:
            routing = (
                f"  dropped {line['dropped_fraction']:.1%}"
                f"  max violation {line['max_violation']:.2f}  dead {line['dead_experts']}"
            )
        print(
            f"step {line['step']}/{self._steps}  loss {line['loss']:.4f}"
            f"  {self._measure.words(line[self._measure.key])}{routing}"
            f"  {line[f'{unit}_per_second']:,.0f} {unit}/s  {duration(left)} left",
            flush=True,
        )

    def close(self) -> None:
        """Take the live line away."""
        self._bar.close()
