"""How far a whole study is: trainings done, and the time left."""

import time

from moejax.runtime.number_words import duration


class StudyClock:
    """Counts the trainings of a study, and the time that those of this start took."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.done = 0
        self._began: dict[str, float] = {}
        self._took: list[float] = []

    def expect(self, count: int) -> None:
        """There are at least so many: further seeds of what the first ones did not decide."""
        self.count = max(self.count, count)

    def skip(self) -> None:
        """A training was finished before."""
        self.done += 1

    def begin(self, label: str) -> None:
        """A training begins."""
        self._began[label] = time.monotonic()

    def end(self, label: str) -> None:
        """A training is done."""
        self.done += 1
        self._took.append(time.monotonic() - self._began.pop(label))

    def forget(self, label: str) -> None:
        """A training was left to another study."""
        del self._began[label]

    def describe(self, left: float) -> str:
        """What is shown beside the seconds that the only present training has ``left``: the
        trainings that are done, and the time left for all, if each takes as long as those before,
        or, if this is the first one, as it.
        """
        one = sum(time.monotonic() - began for began in self._began.values()) + left
        if self._took:
            one = sum(self._took) / len(self._took)
        whole = left + one * (self.count - self.done - 1)
        return f" (study: {self.done} of {self.count} done, {duration(whole)} left)"

    def describe_left(self, at_once: int) -> str:
        """The time left for all, of which some are trained now, if each takes as long as those
        before; empty as long as none is done.
        """
        if not self._took:
            return ""
        one, now = sum(self._took) / len(self._took), time.monotonic()
        running = sum(max(0.0, one - (now - began)) for began in self._began.values())
        whole = running + one * max(0, self.count - self.done - len(self._began))
        return f"{duration(whole / at_once)} left"
