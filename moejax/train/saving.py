"""The checkpoints of a run: the train state, how far it is, and the place in the data."""

import warnings
from dataclasses import dataclass
from typing import Any

from moejax.config.config import Config
from moejax.config.errors import RunError
from moejax.config.files import from_dict, to_dict
from moejax.data.batches import TrainBatches, join_states
from moejax.data.fingerprint import Mark, explain_change
from moejax.runs.checkpoint import Checkpoints
from moejax.runs.history import KEY, explain_history, note_history
from moejax.runs.run_directory import RunDirectory
from moejax.runs.same_model import BASE, check_base
from moejax.runtime.processes import Processes
from moejax.train.state import TrainState
from moejax.train.tally import Tally


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Saves all that a run needs to go on, and restores it."""

    config: Config
    run: RunDirectory
    checkpoints: Checkpoints
    batches: TrainBatches
    description: str
    """Of the data: a run goes on with the same."""
    marks: list[Mark]
    """The fingerprint of the data: a run goes on with those very data."""
    processes: Processes
    base: str | None = None
    """Which model it is that adapters are trained beside (``same_model.sum_arrays``)."""

    def save(self, state: TrainState, tally: Tally, score: float | None) -> None:
        """Save in the background; ``score`` ranks the checkpoint among the best."""
        place = join_states(self.processes.gather(self.batches.get_state()))
        extra = tally.to_json() | {"text": self.description, "place": place}
        extra["marks"] = self.marks
        if self.base is not None:
            extra[BASE] = self.base
        if self.run.owner:
            extra[KEY] = note_history(self.run.path, to_dict(self.config))
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
        marks = saved.pop("marks", None)  # older runs have none
        self._check_text(text, marks)
        if self.base is not None:
            check_base(self.run.path, str(self.config.run.init_from), self.base, saved.pop(BASE))
        if noted := saved.pop(KEY, None):
            self._check_history(step, noted)
        self.batches.set_state(place)
        self.run.keep_metrics_until(step)
        return state, Tally.from_json(saved)

    def _check_history(self, step: int, noted: dict[str, Any]) -> None:
        """Say what of the run's records has changed or is gone; refuse other settings, if it is
        ``config.json`` that is gone.
        """
        if not self.run.owner:
            return
        if not (self.run.path / "config.json").exists():
            warnings.warn(
                f"{self.run.path} has no config.json: it is written anew, with the settings that"
                f" are compared with those of checkpoint {step}.",
                stacklevel=3,
            )
            self.run.compare(from_dict(Config, noted["settings"]), self.config)
        for words in explain_history(self.run.path, step, noted):
            warnings.warn(
                f"{self.run.path}: {words}. The run goes on; its report is not complete, or not"
                f" right.",
                stacklevel=3,
            )

    def _check_text(self, text: str, marks: list[Mark] | None) -> None:
        """Raise ``RunError`` if the data are not those that the run was trained on."""
        change = None
        if marks is not None:
            change = explain_change(marks, self.marks)
        if change is None and text == self.description:
            return
        now = f"now there is {self.description}"
        if text == self.description:
            now = "its content is not the same now"
        raise RunError(
            f"{self.run.path} was trained on {text}, but {now}"
            + (f" ({change})" if change else "")
            + ". Give it the same data, or start a new run with another --run.directory."
        )
