"""Checkpoints by Orbax: asynchronous, atomic, the latest few and the best one."""

import logging
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from moejax.config.errors import RunError
from moejax.runs.checksums import check_files, find_damage, write_checksums
from moejax.runs.stored_arrays import read_tree, restore_like, save_in_parts
from moejax.runtime.processes import Processes

PATIENCE = 300.0
"""Seconds that a process which cannot read a checkpoint waits to hear of the others."""


class Checkpoints:
    """The checkpoints of one run: at each step a pytree of arrays and a JSON object.

    All processes call its methods alike, and share the directory; the JSON is that of process 0.
    """

    def __init__(
        self, directory: Path, keep_latest: int, processes: Processes, measure: str
    ) -> None:
        """``measure`` is the name of what ranks checkpoints: less is better."""
        self._measure = measure
        self.directory = directory.absolute()
        self._processes = processes
        # Orbax logs the whole traceback of a failed save; what the user needs is in our message.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        policy = keep.AnyPreservationPolicy(
            [
                keep.LatestN(n=keep_latest),
                keep.BestN(
                    get_metric_fn=lambda metrics: -metrics[measure],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            cleanup_tmp_directories=True,
            single_host_load_and_broadcast=True,  # one list of steps, that of process 0
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        self._saving = 0
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(
        self, step: int, state: Any, extra: dict[str, Any], score: float | None = None
    ) -> None:
        """Save in the background; ``extra`` must be JSON. A save that fails raises ``RunError``,
        here or at the next call. ``score`` ranks the checkpoint among the best.
        """
        if step in self._manager.all_steps():
            return
        ranked = score is not None and math.isfinite(score)
        metrics = {self._measure: score} if ranked else None
        items = ocp.args.Composite(state=save_in_parts(state), extra=ocp.args.JsonSave(extra))
        self.wait()
        self._saving = step
        self._guard(lambda: self._manager.save(step, args=items, metrics=metrics))

    def wait(self) -> None:
        """Wait until what is being saved is on disk. Raises ``RunError`` if that failed."""
        self._guard(self._manager.wait_until_finished)

    def close(self) -> None:
        """Wait, then end the background threads."""
        self._guard(self._manager.close)

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The last checkpoint that can be read, as (step, state, extra), or None if there is none.

        ``like`` gives shapes, types and shardings (``jax.ShapeDtypeStruct``), which may be those of
        another mesh than the one that saved. Damaged checkpoints after it are moved aside, with a
        warning. Raises ``RunError`` if there are checkpoints and none can be read.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            items = ocp.args.Composite(state=restore_like(like), extra=ocp.args.JsonRestore())
            reason = self._find_damage(step)
            try:
                if reason is None:
                    restored = self._manager.restore(step, args=items)
                    jax.block_until_ready(restored.state)
            except Exception as error:  # Orbax and TensorStore raise many kinds for a cut file
                reason = first_line(error)
            reason = self._agree_on_reason(step, reason)
            if reason is not None:
                damaged[step] = reason
                continue
            for later, reason in damaged.items():
                self._set_aside(later, reason)
            return step, restored.state, restored.extra
        if damaged:
            raise RunError(
                f"no checkpoint in {self.directory} can be read; the last says:"
                f" {damaged[max(damaged)]}. If they are damaged, move the directory away to start"
                f" the run anew."
            )
        return None

    def _write_checksums(self) -> None:
        """Sum up all files of the checkpoint that is being saved, just before Orbax gives its
        directory the final name: there is no checkpoint without them.
        """
        if self._processes.first:
            for directory in self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
                write_checksums(directory)

    def _find_damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint; each process looks at a part of them."""
        found = find_damage(
            self.directory / str(step), self._processes.index, self._processes.count
        )
        return self._agree_on_reason(step, found)

    def _agree_on_reason(self, step: int, reason: str | None) -> str | None:
        """Why a process could not read a checkpoint, or None if all could. If only some could,
        Orbax makes these wait for the others without end: then ``RunError`` ends the run.
        """
        try:
            reasons = self._processes.gather(reason, PATIENCE)
            return self._processes.agree(
                next((r for r in reasons if r is not None), None), PATIENCE
            )
        except TimeoutError:
            raise RunError(
                f"checkpoint {step} in {self.directory} cannot be read by process"
                f" {self._processes.index} ({reason}), but by others. All processes must see the"
                f" same directory; if the checkpoint is damaged, move it away."
            ) from None

    def _set_aside(self, step: int, reason: str) -> None:
        target = self.directory.parent / "damaged_checkpoints" / str(step)
        if self._processes.first:
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            shutil.move(self.directory / str(step), target)
            warnings.warn(
                f"checkpoint {step} cannot be read ({reason}); it was moved to {target}, and the"
                f" one before it is used.",
                stacklevel=4,
            )
        self._processes.barrier()
        self._manager.reload()

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # a full disk shows as OSError, ValueError, XlaRuntimeError, ...
            raise RunError(
                f"a checkpoint could not be saved in {self.directory}: {first_line(error)}."
                f" Checkpoints saved before are unharmed; make room or repair the disk, and the"
                f" same command resumes."
            ) from error


def read_parts(
    directory: Path, like: dict[str, Any], step: int | None = None
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Parts of the state of one checkpoint, by default of the last that can be read, as (step,
    parts, extra). Nothing else is read, and nothing is moved or written.

    ``like`` is as that of ``Checkpoints.restore``, with the parts alone. Raises ``RunError`` if
    there is no such checkpoint, or none can be read.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    steps = sorted(int(path.name) for path in directory.glob("[0-9]*") if path.name.isdigit())
    if step is not None and step not in steps:
        raise RunError(
            f"there is no checkpoint of --step {step} in {directory}; there are:"
            f" {', '.join(map(str, steps)) or 'none'}."
        )
    items = ocp.args.Composite(extra=ocp.args.JsonRestore())
    why = "there are none"
    for chosen in reversed(steps if step is None else [step]):
        place = directory.absolute() / str(chosen)
        try:
            check_files(place)
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                extra = checkpointer.restore(place, args=items).extra
            return chosen, read_tree(place / "state", like), extra
        except Exception as error:  # Orbax and TensorStore raise many kinds for a cut file
            why = first_line(error)
            warnings.warn(f"checkpoint {chosen} cannot be read ({why}).", stacklevel=2)
    raise RunError(f"no checkpoint in {directory} can be read: {why}.")


def first_line(error: Exception) -> str:
    """The first line of what Orbax or TensorStore says, without their lists of source places."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.split(" [")[0][:400].rstrip(".")
