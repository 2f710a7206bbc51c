"""Ending a run politely: SIGTERM and Ctrl-C let the step in progress finish and be saved."""

import signal
from types import FrameType


class Stopped(SystemExit):
    """Raised to end the process with the exit code 128 + signal, such as 143 for SIGTERM."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.name = signal.Signals(signum).name


class StopSignals:
    """While in use, remembers the first SIGTERM or SIGINT; before ``begin`` and at the second one
    it raises ``Stopped`` at once.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.begun = False

    def __enter__(self) -> "StopSignals":
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """From here on there is something to save: wait for ``check``."""
        self.begun = True

    def check(self) -> int | None:
        """The signal that asked to stop, if any."""
        return self.signum

    def _receive(self, signum: int, _: FrameType | None) -> None:
        if not self.begun or self.signum is not None:
            raise Stopped(signum)
        self.signum = signum
