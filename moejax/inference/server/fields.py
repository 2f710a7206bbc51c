"""The fields of a request's body: each is taken once and checked, and what is left is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from moejax.config.checks import shorten
from moejax.inference.server.errors import ApiError

LABELS = ("user", "metadata", "prompt_cache_key", "safety_identifier")
"""They say who asks, and change no text."""


class Fields:
    """What is left of an object of JSON. A field that is null is as if it were not there."""

    def __init__(self, value: Mapping[str, Any], within: str = "") -> None:
        """``within``: the name of the field that the object stands in, with a dot."""
        self._within = within
        self._left = {name: one for name, one in value.items() if one is not None}

    def take(self, name: str) -> Any:
        """Whatever a field holds, or None."""
        return self._left.pop(name, None)

    def whole(self, name: str, default: Any, least: int, most: int) -> Any:
        """A whole number; ``default`` without one."""
        value = self.take(name)
        if value is None:
            return default
        if type(value) is not int and not (type(value) is float and value.is_integer()):
            raise self.wrong_type(name, "a whole number", value)
        self._check_range(name, value, least, most)
        return int(value)

    def real(self, name: str, default: float, least: float, most: float) -> float:
        """A number; ``default`` without one."""
        value = self.take(name)
        if value is None:
            return default
        if type(value) not in (int, float):
            raise self.wrong_type(name, "a number", value)
        self._check_range(name, value, least, most)
        return float(value)

    def truth(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.take(name)
        if value is not None and type(value) is not bool:
            raise self.wrong_type(name, "true or false", value)
        return default if value is None else value

    def inside(self, name: str) -> "Fields | None":
        """The fields of an object."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong_type(name, "an object", value)
        return Fields(value, f"{self._within}{name}.")

    def check_neutral(self, neutral: Mapping[str, Sequence[Any]]) -> None:
        """Take fields that are known and not supported: only values that ask for nothing pass."""
        for name in neutral.keys() & self._left.keys():
            value = self.take(name)
            if not any(_same(value, one) for one in neutral[name]):
                raise ApiError(
                    f"`{self._within}{name}` is not supported here: leave it out.",
                    param=self._within + name,
                    code="unsupported_parameter",
                )

    def finish(self) -> None:
        """Refuse the first field that nobody has taken; labels may be there."""
        for name in self._left:
            if self._within or name not in LABELS:
                full = self._within + name
                raise ApiError(
                    f"there is no field {shorten(full)}.",
                    param=full[:100],
                    code="unknown_parameter",
                )

    def wrong_type(self, name: str, wanted: str, value: object) -> ApiError:
        """The error that a field holds something else."""
        full = self._within + name
        return ApiError(
            f"`{full}` must be {wanted}, not {shorten(value)}.", param=full, code="invalid_type"
        )

    def wrong(self, name: str, message: str) -> ApiError:
        """The error that a field has a value that cannot be."""
        return ApiError(f"`{self._within}{name}` {message}", param=name, code="invalid_value")

    def _check_range(self, name: str, value: float, least: float, most: float) -> None:
        if not least <= value <= most:
            raise self.wrong(name, f"must lie in {least:,} to {most:,}, not {shorten(value)}.")


def check_text(value: str, name: str) -> str:
    """A text. Raises ``ApiError`` for half of a pair of surrogates, which JSON can write."""
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ApiError(
            f"`{name}` has half of a pair of surrogates, which is no character.",
            param=name,
            code="invalid_value",
        )
    return value


def _same(value: object, other: object) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)
