"""What the verdicts of a study are made by: a margin, and seeds for a second look."""

import math
from collections.abc import Iterable
from typing import Any

from moejax.config.checks import check, shorten
from moejax.runtime.number_words import count


def check_margin(margin: Any) -> None:
    """A difference that would matter, or None. Raises ``ConfigError``."""
    check(
        margin is None or (type(margin) in (int, float) and 0 < margin < math.inf),
        "Study.margin must be a difference above 0 that would matter, such as 0.01, or None, not"
        f" {shorten(margin)}.",
    )


def check_more_seeds(more: Any, seeds: Iterable[int], baseline: str | None) -> None:
    """Seeds for the runs that two or more others do not decide against the baseline. Raises
    ``ConfigError``.
    """
    check(
        isinstance(more, tuple)
        and all(type(seed) is int and 0 <= seed < 2**31 for seed in more)
        and len(set(more)) == len(more),
        "Study.more_seeds must be a tuple of different whole numbers in [0, 2**31), such as (3, 4),"
        f" not {shorten(more)}.",
    )
    used = {*seeds}
    for seed in more:
        check(
            seed not in used,
            f"Study.more_seeds has {seed}, which is a seed of the study already: it counts once.",
        )
    check(
        more == () or (baseline is not None and len(used) > 1),
        "Study.more_seeds are for runs that two or more seeds do not decide against a baseline:"
        f" here {count(len(used), 'seed', 'is', 'are')} in seeds, and baseline is {baseline!r}."
        " Put all in seeds, or give a baseline.",
    )
