"""Which trainings of a study are wanted, in which order: those that tune a run, then its others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moejax.config.errors import ConfigError
from moejax.lab.study.definition import Study
from moejax.lab.study.results import Outcome, Tuned
from moejax.lab.study.statistics import choose_for_more_seeds
from moejax.lab.study.trials import Plan, Records, Trial
from moejax.lab.study.tuning import choose_setting
from moejax.lab.study.verdicts import make_arms, name_seeds


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A part of a study: all of it, unless something is named."""

    only: tuple[str, ...] = ()
    """Names of runs."""
    seeds: tuple[int, ...] = ()
    setting: int | None = None
    """The number of a setting, from 1: its trainings alone, without any that tune."""

    def check(self, study: Study) -> None:
        """Raise ``ConfigError`` for what the study does not have."""
        unknown = [name for name in self.only if name not in study.runs]
        if unknown:
            raise ConfigError(
                f"--only {' '.join(unknown)}: the runs of this study are {', '.join(study.runs)}."
            )
        chosen = self.only or tuple(study.runs)
        seeds = {seed: None for name in chosen for seed in study.seeds_for(name)}
        seeds |= dict.fromkeys(study.more_seeds)
        if study.tunes:
            seeds[study.tune_seed] = None
        for seed in self.seeds:
            if seed not in seeds:
                raise ConfigError(
                    f"--seed {seed}: the seeds of {', '.join(chosen)} are"
                    f" {', '.join(map(str, sorted(seeds)))}."
                )
        if self.setting is None:
            return
        if not study.tunes:
            raise ConfigError(
                f"--setting {self.setting}: nothing is tuned in this study; leave it out."
            )
        count = len(study.settings_of(chosen[0]))
        if not 1 <= self.setting <= count:
            raise ConfigError(f"--setting {self.setting}: there are settings from 1 to {count}.")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What of a study is to be trained, by what there is already."""

    plan: Plan
    records: Records
    selection: Selection

    @property
    def names(self) -> Sequence[str]:
        """The runs that are chosen."""
        return [
            n for n in self.plan.study.runs if n in self.selection.only or not self.selection.only
        ]

    def tuned(self, name: str) -> Tuned:
        """How the setting of a run is chosen, as far as it is."""
        study, plan = self.plan.study, self.plan
        if (other := study.tuned_as.get(name)) is not None:
            return replace(self.tuned(other), outcomes=(), edges=(), taken_from=other)
        return choose_setting(study, name, [self.records.read(t) for t in plan.tuning(name)])

    def choose_undecided(self) -> Sequence[str]:
        """The runs that get ``more_seeds``: those that their first ones do not decide, once all
        runs have these, and the baseline.
        """
        study = self.plan.study
        if not study.more_seeds or study.baseline is None:
            return ()
        first = {name: self._read_run(name, study.seeds_for(name)) for name in study.runs}
        return choose_for_more_seeds(make_arms(first), study.baseline, margin=study.margin)

    def describe_undecided(self) -> str:
        """Which runs have further seeds, and why, in words; empty if none has."""
        if not (undecided := self.choose_undecided()):
            return ""
        study = self.plan.study
        return (
            f"{name_seeds(study.seeds)} do not decide {', '.join(undecided[1:])} against"
            f" {undecided[0]}: further trainings with {name_seeds(study.more_seeds)}"
        )

    def list_trials(self) -> list[Trial]:
        """All trainings that are wanted and known, in order, each once; more may follow when these
        are done: a run's are known when its setting is chosen, those with further seeds when all
        runs have their first ones.
        """
        study, seeds, found = self.plan.study, self.selection.seeds, dict[str, Trial]()
        undecided = self.choose_undecided()
        for name in self.names:
            more = [s for s in study.more_seeds if name in undecided or s in seeds]
            own = (*study.seeds_for(name), *more)
            if (setting := self.selection.setting) is not None:
                for seed in seeds or own:
                    label = f"{name}-setting{setting}-seed{seed}"
                    trial = self.plan.trial(name, seed, setting, label)
                    found[trial.label] = trial
                continue
            number: int | None = 1
            if study.tunes:
                tuning = self.plan.tuning(study.tuned_as.get(name, name))
                found |= {trial.label: trial for trial in tuning}
                number = self.tuned(name).chosen
            chosen = [seed for seed in own if not seeds or seed in seeds]
            if number is not None:
                found |= {t.label: t for t in self.plan.judging(name, number, chosen)}
        return list(found.values())

    def count(self) -> int:
        """How many trainings are wanted, with those that are not known yet."""
        study, seeds = self.plan.study, self.selection.seeds
        judged = sum(
            len([s for s in study.seeds_for(n) if not seeds or s in seeds]) for n in self.names
        )
        if self.selection.setting is not None:
            return len(self.names) * len(seeds) if seeds else judged
        tuned = {study.tuned_as.get(name, name) for name in self.names} if study.tunes else ()
        return judged + sum(len(study.settings_of(name)) for name in tuned)

    def read_outcomes(self) -> list[Outcome]:
        """What there is of every run of the study with every seed that judges, chosen or not."""
        study, undecided = self.plan.study, self.choose_undecided()
        return [
            outcome
            for name in study.runs
            for outcome in self._read_run(
                name, study.seeds_for(name) + study.more_seeds * (name in undecided)
            )
        ]

    def _read_run(self, name: str, seeds: Sequence[int]) -> list[Outcome]:
        study = self.plan.study
        tuned = self.tuned(name) if study.tunes else None
        number = 1 if tuned is None else tuned.chosen
        if number is not None:
            return [self.records.read(trial) for trial in self.plan.judging(name, number, seeds)]
        diverged = tuned is not None and tuned.status == "diverged"
        return [
            Outcome(
                name=name,
                seed=seed,
                label=self.plan.label(name, seed),
                status="diverged" if diverged else "not trained",
                message="with every setting that was tried." if diverged else "",
                measure=study.runs[name].model.material.measure,
            )
            for seed in seeds
        ]
