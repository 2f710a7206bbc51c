"""The checkpoints of a run: the train state, how far it is, and the place in the data."""

from dataclasses import dataclass
from typing import Any

from moejax.config.errors import RunError
from moejax.data.batches import TrainBatches, join_states
from moejax.runs.checkpoint import Checkpoints
from moejax.runs.run_directory import RunDirectory
from moejax.runtime.processes import Processes
from moejax.train.state import TrainState
from moejax.train.tally import Tally


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Saves all that a run needs to go on, and restores it."""

    run: RunDirectory
    checkpoints: Checkpoints
    batches: TrainBatches
    description: str
    """Of the data: a run goes on with the same."""
    processes: Processes

    def save(self, state: TrainState, tally: Tally, score: float | None) -> None:
        """Save in the background; ``score`` ranks the checkpoint among the best."""
        place = join_states(self.processes.gather(self.batches.get_state()))
        extra = tally.to_json() | {"text": self.description, "place": place}
        self.checkpoints.save(tally.step, state, extra, score)

    def restore(self, like: Any) -> tuple[TrainState, Tally] | None:
        """The last readable checkpoint, laid out as ``like``; None if there is none. What the run
        wrote after it is dropped.
        """
        restored = self.checkpoints.restore(like)
        if restored is None:
            self.run.keep_metrics_until(0)
            return None
        step, state, saved = restored
        text, place = saved.pop("text"), saved.pop("place")
        if text != self.description:
            raise RunError(
                f"{self.run.path} was trained on {text}, but now there is {self.description}. Give"
                f" it the same text, or start a new run with another --run.directory."
            )
        self.batches.set_state(place)
        self.run.keep_metrics_until(step)
        return state, Tally.from_json(saved)
