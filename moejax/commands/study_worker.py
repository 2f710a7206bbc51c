"""A process that trains one training of a study: `python -m moejax.commands.study_worker`.

It reads its job from the standard input, a line of JSON (``lab/study/trainers.py`` writes it). When
the input ends, the process that asked is gone: the training is saved and ends, as after SIGTERM.
"""

import json
import os
import signal
import threading
from pathlib import Path

from moejax.commands.main import messages
from moejax.runtime.allocator import keep_freed_memory, take_gpu_memory_as_needed


def main() -> None:
    """Train; exit codes are those of ``train.py``, and 75 if another process trains it now."""
    job = json.loads(_read_line())
    take_gpu_memory_as_needed()  # there may be several of them
    threading.Thread(target=_end_with_input, daemon=True, name="moejax-input").start()
    with messages():
        from moejax.config.config import Config
        from moejax.config.errors import InUseError
        from moejax.config.files import from_dict
        from moejax.lab.study.definition import load_study_file
        from moejax.lab.study.train_one import train_one
        from moejax.lab.study.trainers import IN_USE

        keep_freed_memory()
        if job["code"] is not None:  # it registers a router
            load_study_file(job["code"])
        config = from_dict(Config, job["config"])
        try:
            train_one(config, job["label"], job["command"], Path(job["compiled"]))
        except InUseError:
            raise SystemExit(IN_USE) from None


def _read_line() -> bytes:
    """The first line of the standard input, and not a byte more."""
    with open(0, "rb", buffering=0, closefd=False) as opened:
        return opened.readline()


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
