"""What a setting needs to have an effect."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moejax.config.config import Config


@dataclass(frozen=True)
class Need:
    """What some settings need to have an effect."""

    settings: tuple[str, ...]
    """Their paths; that of a section stands for all settings in it."""
    met: Callable[[Any], bool]
    """Whether a config has it."""
    without: str
    """The state of the config that has it not, after "has no effect with"; ``{c}`` is the config.
    """
    instead: str
    """What to write instead, besides leaving the setting out."""
    twin: bool = False
    """Whether such settings are kept on purpose: by a dense twin those of its experts. Then config
    files are not told of them, and subcommands warn.
    """
    says: str = "has no effect with"
    """What the setting does then."""

    def covers(self, path: str) -> bool:
        """Whether it is a need of the setting at ``path``."""
        return any(path == name or path.startswith(f"{name}.") for name in self.settings)


def join_paths(section: str, names: str) -> tuple[str, ...]:
    """The paths of settings of a section, their names given in one text."""
    return tuple(f"{section}.{name}" for name in names.split())


def is_routed(c: Config) -> bool:
    """Whether any layer has experts."""
    return any(c.model.routed_layers)
