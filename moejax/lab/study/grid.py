"""A grid of settings to be tried: its axes, all of its settings, and which lie at an edge."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moejax.config.change import changed
from moejax.config.checks import check, shorten
from moejax.config.config import Config
from moejax.config.errors import ConfigError
from moejax.config.idle import differences_that_matter

Fields = str | tuple[str, ...]
Grid = Mapping[Fields, tuple[Any, ...]]
"""Axes: a field, or fields that move together, and its values. The grid is their product."""
Setting = dict[str, Any]
"""Values by field."""
EXAMPLE = '{"optim.learning_rate": (0.01, 0.02, 0.04)}'


def check_grid(name: str, grid: Any) -> None:
    """Raise ``ConfigError`` for what is no grid; ``name`` is what it is called."""
    check(isinstance(grid, dict), f"{name} must be a dict such as {EXAMPLE}, not {shorten(grid)}.")
    for fields, values in grid.items():
        names = _names(fields)
        check(
            bool(names) and all(isinstance(one, str) and one for one in names),
            f"{name} has {shorten(fields)} for a field: name one, such as 'optim.learning_rate', or"
            f" a tuple of fields that move together.",
        )
        check(
            isinstance(values, tuple | list) and len(values) > 0,
            f"{name}[{shorten(fields)}] must be a tuple of values, not {shorten(values)}.",
        )
        if isinstance(fields, tuple):
            wrong = [v for v in values if not isinstance(v, tuple | list) or len(v) != len(fields)]
            check(
                not wrong,
                f"{name}[{shorten(fields)}] needs a tuple of {len(fields)} for each value, one for"
                f" each field, not {shorten(wrong[0]) if wrong else ''}.",
            )
        firsts = [_values(fields, value)[0] for value in values]
        rising = all(a < b for a, b in itertools.pairwise(firsts)) if _are_numbers(firsts) else True
        check(
            rising and all(values.count(value) == 1 for value in values),
            f"{name}[{shorten(fields)}] must have different values in rising order, not"
            f" {shorten(values)}.",
        )
    named = [one for fields in grid for one in _names(fields)]
    twice = sorted({one for one in named if named.count(one) > 1})
    check(not twice, f"{name} has {', '.join(twice)} on two axes: leave it out of one.")


def list_settings(grid: Grid) -> tuple[Setting, ...]:
    """All settings of a grid, the last axis the quickest; one without any values of no axes."""
    axes = [
        [dict(zip(_names(fields), _values(fields, value), strict=True)) for value in values]
        for fields, values in grid.items()
    ]
    return tuple(
        {name: value for part in parts for name, value in part.items()}
        for parts in itertools.product(*axes)
    )


def find_edges(config: Config, grid: Grid, chosen: Setting) -> list[tuple[str, str]]:
    """The axes at whose edge a setting lies: what it is there (``optim.learning_rate 0.04``), and
    which values should be tried as well (``larger``). An axis has no edge where a single value was
    tried, where its values are not numbers, where it has no effect in ``config``, and where no
    config can lie beyond.
    """
    found = []
    for fields, values in grid.items():
        names = _names(fields)
        settings = [dict(zip(names, _values(fields, value), strict=True)) for value in values]
        numbers = _are_numbers([_values(fields, value)[0] for value in values])
        if len(values) < 2 or not numbers or not _matters(config, chosen, settings):
            continue
        for end, way, beyond in ((0, -1, "smaller"), (-1, 1, "larger")):
            at_end = all(chosen[name] == settings[end][name] for name in names)
            if at_end and _can_lie_beyond(config, chosen, settings[end], way):
                found.append((write_setting(settings[end]), beyond))
    return found


def write_setting(setting: Setting, short: bool = False) -> str:
    """A setting as text: ``optim.learning_rate 0.02, optim.muon_learning_rate 0.03``; if ``short``,
    without the sections of the fields.
    """
    return ", ".join(
        f"{name.rpartition('.')[2] if short else name} {value}" for name, value in setting.items()
    )


def _matters(config: Config, chosen: Setting, settings: Sequence[Setting]) -> bool:
    """Whether an axis changes anything, all else being as chosen."""
    first, last = (changed(config, chosen | settings[end]) for end in (0, -1))
    return bool(differences_that_matter(first, last))


def _can_lie_beyond(config: Config, chosen: Setting, end: Setting, way: int) -> bool:
    """Whether some config lies beyond the end of an axis."""
    for step in (_next_float, _next_int):
        next_one = {name: step(value, way) for name, value in end.items()}
        if next_one == end:
            continue
        try:
            changed(config, chosen | next_one)
        except ConfigError:
            continue
        return True
    return False


def _next_float(value: Any, way: int) -> Any:
    return math.nextafter(value, way * math.inf) if _are_numbers([value]) else value


def _next_int(value: Any, way: int) -> Any:
    return value + way if type(value) is int else value


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


def _names(fields: Fields) -> tuple[str, ...]:
    return fields if isinstance(fields, tuple) else (fields,)


def _values(fields: Fields, value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(fields, tuple) else (value,)
