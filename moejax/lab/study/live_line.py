"""One line that says how far several trainings are: live on a terminal, else once a minute."""

import shutil
import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

SILENCE = 60.0
"""Seconds after which a line is printed, where there is no live one."""
TICK = 1.0


class LiveLine:
    """Shows what ``describe`` says, until it is closed."""

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe
        self.live = sys.stdout.isatty()
        self._bar = tqdm(
            disable=not self.live,
            file=sys.stdout,
            bar_format="{desc}",
            leave=False,
            ncols=1000,
            nrows=20,
        )
        self._said = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="moejax-study-line")
        self._thread.start()

    def say(self, line: str) -> None:
        """Print a line that stays, above the live one."""
        self._said = time.monotonic()
        if self.live:
            self._bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Take the line away."""
        self._closing.set()
        self._thread.join()
        self._bar.close()

    def _run(self) -> None:
        while not self._closing.wait(TICK):
            if self.live:
                width = shutil.get_terminal_size().columns - 1
                self._bar.set_description_str(self._describe()[:width])
            elif time.monotonic() - self._said > SILENCE:
                self.say(self._describe())
