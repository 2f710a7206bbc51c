"""What a study may ask for beside its table: an analysis of its own kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moejax.config.config import Config
from moejax.lab.study.results import Comparison


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an analysis has found."""

    data: dict[str, Any]
    """Plain values, for a file of JSON."""
    section: str
    """HTML, for the page."""


class Analysis(Protocol):
    """What a study makes of its trainings, beside the table: ``Study(analysis=...)``."""

    @property
    def file(self) -> str:
        """The name of the file of its data, in the study's directory."""

    @property
    def may_differ(self) -> tuple[str, ...]:
        """Settings in which the runs may differ, though those of other studies may not."""

    def check(self, runs: Mapping[str, Config]) -> None:
        """Raises ``ConfigError`` if it cannot be made of these runs."""

    def analyse(
        self, runs: Mapping[str, Config], comparison: Comparison, directory: Path
    ) -> Findings:
        """Of what there is; ``directory`` is the study's."""
