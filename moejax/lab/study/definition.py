"""A study: configs to be trained under equal conditions, each at its best, and compared.

A study file is Python with a function ``get_study() -> Study``. Its configs are *arms*. With a grid
of settings (``tune``), every arm is first trained with each setting and the seed ``tune_seed``; the
setting with the least measure at the end is the one that it then trains with, with all ``seeds``.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from moejax.config.change import changed
from moejax.config.checks import check, shorten
from moejax.config.config import Config
from moejax.config.errors import ConfigError
from moejax.config.files import call_file
from moejax.lab.study.analysis import Analysis
from moejax.lab.study.check_tuning import check_grids, check_seeds, check_tune_seed
from moejax.lab.study.check_verdicts import check_margin, check_more_seeds
from moejax.lab.study.conditions import check_conditions
from moejax.lab.study.grid import Grid, Setting, list_settings, write_setting

FILES = ("results.json", "table.md", "study.html")
"""What a study writes in its directory, so that no run can have such a name."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Configs to compare. Each is trained once with every seed, at its best setting."""

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
    unlike_steps: bool = False
    """Runs may have unlike numbers of steps: where all take as long, say, and that is compared."""
    tune: Grid = field(default_factory=dict)
    """Settings to try in every run: by field, or by fields that move together, the values in rising
    order: ``{("optim.learning_rate", "optim.muon_learning_rate"): ((0.01, 0.015), (0.02, 0.03),
    (0.04, 0.06))}``. Of several axes every combination is tried."""
    tune_seed: int = 0
    """The seed that settings are tried with. It is none of ``seeds``: the least of several values
    is too low a guess of what that setting gives."""
    tune_own: dict[str, Grid] = field(default_factory=dict)
    """Grids of single runs, in the place of ``tune``, for settings that other runs do not have.
    Each must have as many settings as every other run: what was tried more often looks better."""
    tuned_as: dict[str, str] = field(default_factory=dict)
    """Runs that are not tuned themselves, and the run whose setting each takes: long trainings of a
    model take what is best for the shortest one, say."""
    seeds_of: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The seeds of single runs, in the place of ``seeds``."""
    analysis: Analysis | None = None
    """What is made of the trainings beside the table, such as ``Frontier()``: a section of the
    page, and a file."""

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
        check_grids(self.runs, self.tune, self.tune_own, self.tuned_as)
        check_seeds(self.runs, self.seeds, self.seeds_of)
        check(
            self.baseline is None or self.baseline in self.runs,
            f"Study.baseline must be the name of a run ({', '.join(self.runs)}) or None, not"
            f" {shorten(self.baseline)}.",
        )
        check_margin(self.margin)
        of_runs = (seed for seeds in self.seeds_of.values() for seed in seeds)
        check_more_seeds(self.more_seeds, (*self.seeds, *of_runs), self.baseline)
        judging = {"Study.seeds": self.seeds, "Study.more_seeds": self.more_seeds}
        judging |= {f"Study.seeds_of[{name!r}]": seeds for name, seeds in self.seeds_of.items()}
        check_tune_seed(self.tune_seed, judging if self.tunes else {})
        tolerance = self.flops_tolerance
        check(
            tolerance is None or (type(tolerance) in (int, float) and tolerance >= 0),
            "Study.flops_tolerance must be a share such as 0.05, or None, not"
            f" {shorten(tolerance)}.",
        )
        check(
            self.analysis is None
            or (hasattr(self.analysis, "analyse") and not isinstance(self.analysis, type)),
            "Study.analysis must be an analysis, such as Frontier(), or None, not"
            f" {shorten(self.analysis)}.",
        )
        free = () if self.analysis is None else self.analysis.may_differ
        free += ("run.steps",) * self.unlike_steps
        check_conditions(self.all_configs(), tolerance, free)
        if self.analysis is not None:
            self.analysis.check(self.runs)

    @property
    def tunes(self) -> bool:
        """Whether there is a choice of settings."""
        return any(len(self.settings_of(name)) > 1 for name in self.runs)

    def grid_of(self, name: str) -> Grid:
        """The grid of a run; of one that takes the setting of another, that of the other."""
        return self.tune_own.get(self.tuned_as.get(name, name), self.tune)

    def settings_of(self, name: str) -> tuple[Setting, ...]:
        """The settings that a run may train with, values by field; a single one without any where
        there is no grid.
        """
        return list_settings(self.grid_of(name))

    def seeds_for(self, name: str) -> tuple[int, ...]:
        """The seeds that a run is judged by."""
        return self.seeds_of.get(name, self.seeds)

    def config_of(self, name: str, setting: Setting) -> Config:
        """The config of a run with a setting. Raises ``ConfigError`` if it cannot work."""
        try:
            return changed(self.runs[name], setting)
        except ConfigError as error:
            raise ConfigError(f"{name} with {write_setting(setting)}: {error}") from error

    def all_configs(self) -> dict[str, Config]:
        """The config of every run with every setting, by what it is called in messages."""
        return {
            name + (f" with {write_setting(setting)}" if setting else ""): self.config_of(
                name, setting
            )
            for name in self.runs
            for setting in self.settings_of(name)
        }


def load_study_file(path: str | Path) -> Study:
    """Run ``get_study()`` of a study file. Raises ``ConfigError`` when there is none, or it
    fails.
    """
    return call_file(path, "get_study", Study, "study")
