"""One line that says how far something is: live on a terminal, else printed once a minute."""

import shutil
import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

SILENCE = 60.0
"""Seconds after which a line is printed, where there is no live one."""
TICK = 1.0
"""Seconds after which the live line is drawn again, where nobody asks for it."""
ANY_WIDTH = 1000


class LiveLine:
    """Shows what ``describe`` gives for a width, until it is closed; if ``quiet``, nothing."""

    def __init__(self, describe: Callable[[int], str], quiet: bool = False) -> None:
        self._describe, self._quiet = describe, quiet
        self.live = sys.stdout.isatty() and not quiet
        # Asked for its size, a terminal that does not know it says 0, and tqdm draws nothing.
        self._bar = tqdm(
            disable=not self.live,
            file=sys.stdout,
            bar_format="{desc}",
            leave=False,
            ncols=ANY_WIDTH,
            nrows=20,
        )
        self._said = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="moejax-live-line")
        self._thread.start()

    def say(self, line: str) -> None:
        """Print a line that stays, above the live one."""
        self._said = time.monotonic()
        if self.live:
            self._bar.write(line, file=sys.stdout)
        elif not self._quiet:
            print(line, flush=True)

    def draw(self) -> None:
        """Something is done: draw the live line anew, if it was not drawn just before."""
        if self.live:
            self._bar.set_description_str(self._text(), refresh=False)
            self._bar.update(1)

    def close(self) -> None:
        """Take the line away."""
        self._closing.set()
        self._thread.join()
        self._bar.close()

    def _run(self) -> None:
        """Show that something goes on, while nothing else does."""
        while not self._closing.wait(TICK):
            if self.live:
                self._bar.set_description_str(self._text())
            elif time.monotonic() - self._said > SILENCE:
                self.say(self._describe(ANY_WIDTH))

    def _text(self) -> str:
        # A terminal that does not know its width, or knows it as 0, is taken to have 80.
        room = shutil.get_terminal_size().columns - 1
        return self._describe(room)[:room]
