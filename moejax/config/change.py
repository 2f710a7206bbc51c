"""Settings like others, but for some."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from moejax.config.checks import check, shorten
from moejax.config.errors import ConfigError

T = TypeVar("T")


def changed(config: T, changes: Mapping[str, Any]) -> T:
    """A copy of a config with some settings changed, each named by its path:
    ``changed(config, {"model.moe.top_k": 4, "run.steps": 200})``.

    It works on any section, too; paths then begin inside it: ``changed(model, {"moe.top_k": 2})``.
    The value of a section is another section, or a dict of changes to the section that is there:
    ``{"model.moe": {"router": "switch", "top_k": 1}}``. Only the result is checked, so settings
    that depend on each other are changed in one call. Raises ``ConfigError`` for an unknown path,
    which it names with those near to it, and for settings that cannot work.
    """
    check(
        dataclasses.is_dataclass(config) and not isinstance(config, type),
        f"changed() needs a config or a section of one, not {shorten(config)}.",
    )
    return _replace(config, changes, config, "")


def _replace(section: Any, changes: Mapping[str, Any], config: Any, at: str) -> Any:
    """The section of ``config`` at the path ``at``, with these changes."""
    names = {field.name for field in dataclasses.fields(section)}
    values: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, _, rest = str(path).partition(".")
        is_section = name in names and dataclasses.is_dataclass(getattr(section, name))
        if name not in names or (rest and not is_section):
            raise ConfigError(_unknown(f"{at}{path}", config))
        if rest or (is_section and isinstance(value, Mapping)):
            inner.setdefault(name, {}).update({rest: value} if rest else value)
        else:
            values[name] = value
    for name, part in inner.items():
        if name in values:
            raise ConfigError(
                f"{at}{name} is given as a whole, and settings in it beside it: leave one out."
            )
        values[name] = _replace(getattr(section, name), part, config, f"{at}{name}.")
    return dataclasses.replace(section, **values)


def _unknown(path: str, config: Any) -> str:
    """The message about a path that is not one of the config's: what is near it, or beside it."""
    paths = list(_all_paths(config))
    section = path
    while section and section not in paths:
        section = section.rpartition(".")[0]
    start = f"{section}." if section else ""
    beside = [known.removeprefix(start) for known in paths if known.rpartition(".")[0] == section]
    wanted = path.removeprefix(start).split(".")[0]
    near = [known for known in paths if known.split(".")[-1] == path.split(".")[-1]]
    near = near or [start + name for name in difflib.get_close_matches(wanted, beside, n=1)]
    if near:
        return f"there is no setting {path}. Did you mean {' or '.join(near)}?"
    if not beside:
        return f"there is no setting {path}: {section} has no parts."
    return f"there is no setting {path}. There are: {', '.join(start + name for name in beside)}."


def _all_paths(section: Any, at: str = "") -> Iterator[str]:
    """The paths of all settings and sections."""
    for field in dataclasses.fields(section):
        yield at + field.name
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _all_paths(value, f"{at}{field.name}.")
