"""What a study says about its tuning: that every run gets an equal chance, and seeds judge once."""

from collections.abc import Collection, Mapping
from typing import Any

from moejax.config.checks import check, shorten
from moejax.lab.study.grid import Grid, check_grid, list_settings


def check_grids(
    runs: Collection[str], tune: Grid, own: Mapping[str, Grid], taken: Mapping[str, str]
) -> None:
    """Raise ``ConfigError`` for grids that are none, and that try some runs more often than others.
    ``own``: those of single runs; ``taken``: the runs that take the setting of another.
    """
    names = ", ".join(runs)
    check_grid("Study.tune", tune)
    check(
        isinstance(own, dict) and all(name in runs for name in own),
        f"Study.tune_own must be a dict of grids by the names of runs ({names}), not"
        f" {shorten(own)}.",
    )
    for name, grid in own.items():
        check_grid(f"Study.tune_own[{name!r}]", grid)
    check(
        isinstance(taken, dict) and all(one in runs for pair in taken.items() for one in pair),
        f"Study.tuned_as must be a dict from a run to the one whose setting it takes ({names}), not"
        f" {shorten(taken)}.",
    )
    for name, other in taken.items():
        check(
            other not in taken and name not in own,
            f"Study.tuned_as: {name} takes the setting of {other}, so that {other} must be tuned"
            f" itself, and Study.tune_own must not have {name}.",
        )
    counts = {name: len(list_settings(own.get(name, tune))) for name in runs if name not in taken}
    first = next(iter(counts))
    for name, count in counts.items():
        check(
            count == counts[first],
            f"{first} would be tried with {counts[first]} settings and {name} with {count}: what is"
            f" tried more often looks better. Give all as many by Study.tune and Study.tune_own.",
        )


def check_seeds(runs: Collection[str], seeds: Any, seeds_of: Any) -> None:
    """Raise ``ConfigError`` for what are no seeds; ``seeds_of``: those of single runs."""
    check(
        are_seeds(seeds),
        "Study.seeds must be a tuple of different whole numbers in [0, 2**31), such as"
        f" (0, 1, 2), not {shorten(seeds)}.",
    )
    check(
        isinstance(seeds_of, dict)
        and all(name in runs and are_seeds(of) for name, of in seeds_of.items()),
        "Study.seeds_of must be a dict of tuples of different whole numbers by the names of runs"
        f" ({', '.join(runs)}), not {shorten(seeds_of)}.",
    )


def check_tune_seed(tune_seed: Any, judging: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ``ConfigError`` for what is no seed, and for one of those that judge: ``judging`` has
    them by the fields that name them.
    """
    check(
        are_seeds((tune_seed,)),
        f"Study.tune_seed must be a whole number in [0, 2**31), not {shorten(tune_seed)}.",
    )
    for name, seeds in judging.items():
        others = [one for one in range(len(seeds) + 1) if one != tune_seed][: len(seeds)]
        check(
            tune_seed not in seeds,
            f"{name} {seeds} has the seed {tune_seed} that settings are chosen with: what is the"
            f" best of several with one seed looks better than it is. Write {tuple(others)}, or"
            f" another Study.tune_seed.",
        )


def are_seeds(seeds: Any) -> bool:
    """Whether this is a tuple of different seeds, of at least one."""
    return (
        isinstance(seeds, tuple)
        and len(set(seeds)) == len(seeds) > 0
        and all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)
    )
