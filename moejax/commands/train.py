"""`moejax train` and `python train.py`: train one config."""

import shlex
from collections.abc import Sequence

from moejax.commands.command_line import parse_config
from moejax.runtime.allocator import keep_freed_memory


def train(
    words: list[str], program: str = "moejax train", typed: Sequence[str] = ("moejax", "train")
) -> None:
    """Train the config of ``--config FILE``, changed by the flags that follow. ``typed``: how the
    command line began, which the run's report repeats.
    """
    config, name = parse_config(words, program)
    keep_freed_memory()
    from moejax.train.training import train as train_config  # late: help does not wait for it

    train_config(config, name=name, command=shlex.join([*typed, *words]))
