"""How far a whole study is: trainings done, and the time left."""

import time

from moejax.runtime.number_words import duration


class StudyClock:
    """Counts the trainings of a study, and the time that those of this start took."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._done = 0
        self._took: list[float] = []

    def skip(self) -> None:
        """A training was finished before."""
        self._done += 1

    def begin(self) -> None:
        """A training begins."""
        self._began = time.monotonic()

    def end(self) -> None:
        """The training is done."""
        self._done += 1
        self._took.append(time.monotonic() - self._began)

    def describe(self, left: float) -> str:
        """What is shown beside the seconds that the present training has ``left``: the trainings
        that are done, and the time left for all, if each takes as long as those before, or, if this
        is the first one, as it.
        """
        one = time.monotonic() - self._began + left
        if self._took:
            one = sum(self._took) / len(self._took)
        whole = left + one * (self._count - self._done - 1)
        return f" (study: {self._done} of {self._count} done, {duration(whole)} left)"
