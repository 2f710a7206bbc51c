"""A study: configs to be trained under equal conditions, one after the other, and compared.

A study file is Python with a function ``get_study() -> Study``.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from moejax.config.checks import check, shorten
from moejax.config.config import Config
from moejax.config.files import call_file
from moejax.lab.study.check_verdicts import check_margin, check_more_seeds
from moejax.lab.study.conditions import check_conditions

FILES = ("results.json", "table.md", "study.html")
"""What a study writes in its directory, so that no run can have such a name."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Configs to compare. Each is trained once with every seed."""

    title: str
    """What is compared."""
    question: str
    """What the comparison should answer, in a sentence."""
    runs: dict[str, Config]
    """The configs by name; their seeds and directories are set by the study."""
    seeds: tuple[int, ...] = (0,)
    """Each is the seed of the initial parameters and of the shuffle."""
    baseline: str | None = None
    """The run, often the dense twin, that the others are held against: the table has the verdict on
    the differences with the same seed, and the steps and seconds of training after which they are
    as good as the baseline is at its end (the mean over its seeds), by linear interpolation between
    the first evaluation that is and the one before it."""
    margin: float | None = None
    """A difference that would matter, in the unit that runs are judged in: 0.01 bits per byte, or
    0.01 for one image of a hundred. A run is `the same` where its interval lies within it."""
    more_seeds: tuple[int, ...] = ()
    """Further seeds for the baseline, and for the runs that ``seeds`` do not decide against it.
    Verdicts then come from two looks, and each has half of the 5 % of error."""
    flops_tolerance: float | None = 0.05
    """By how much of the smallest the runs' active FLOPs a token may differ; None for any, where
    that is what is compared."""

    def __post_init__(self) -> None:
        for name in ("title", "question"):
            words = getattr(self, name)
            check(
                isinstance(words, str) and bool(words.strip()),
                f"Study.{name} must be a text of at least one word, not {shorten(words)}.",
            )
        found = "an empty one" if self.runs == {} else f"a {type(self.runs).__name__}"
        check(
            isinstance(self.runs, dict) and bool(self.runs),
            'Study.runs must be a dict with at least one config by name, such as {"dense": config},'
            f" not {found}.",
        )
        for name, config in self.runs.items():
            check(
                isinstance(name, str)
                and re.fullmatch(r"\w[\w.+=-]{0,99}", name, re.ASCII) is not None
                and name not in FILES,
                f"the run {name!r} cannot be the name of a directory: take letters, digits and any"
                " of _ . + = - after the first character, at most 100.",
            )
            check(
                isinstance(config, Config),
                f"Study.runs[{name!r}] must be a moejax.config.Config, not"
                f" {type(config).__name__}.",
            )
        lower = [name.lower() for name in self.runs]
        same = [name for name in self.runs if lower.count(name.lower()) > 1]
        check(
            not same,
            f"the runs {', '.join(same)} would share a directory where case does not count.",
        )
        seeds = self.seeds
        check(
            isinstance(seeds, tuple)
            and len(set(seeds)) == len(seeds) > 0
            and all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds),
            "Study.seeds must be a tuple of different whole numbers in [0, 2**31), such as"
            f" (0, 1, 2), not {shorten(seeds)}.",
        )
        check(
            self.baseline is None or self.baseline in self.runs,
            f"Study.baseline must be the name of a run ({', '.join(self.runs)}) or None, not"
            f" {shorten(self.baseline)}.",
        )
        check_margin(self.margin)
        check_more_seeds(self.more_seeds, seeds, self.baseline)
        tolerance = self.flops_tolerance
        check(
            tolerance is None or (type(tolerance) in (int, float) and tolerance >= 0),
            "Study.flops_tolerance must be a share such as 0.05, or None, not"
            f" {shorten(tolerance)}.",
        )
        check_conditions(self.runs, tolerance)


def load_study_file(path: str | Path) -> Study:
    """Run ``get_study()`` of a study file. Raises ``ConfigError`` when there is none, or it
    fails.
    """
    return call_file(path, "get_study", Study, "study")
