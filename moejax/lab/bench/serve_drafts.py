"""What speculation does to a load: how many drafts are right, and how fast it is without them."""

from collections.abc import Callable
from typing import Any

from moejax.inference.engine.engine import Engine
from moejax.lab.bench.serve_drive import Driven


class WithDrafts:
    """An engine that speculates. It shares no prefixes, so that of equal loads the
    later ones have no advantage.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def drive(self, run: Callable[[], Driven]) -> tuple[Driven, dict[str, Any]]:
        """Send a load, between two times without drafts, so that a slow moment of the machine hits
        both: what it was like, and what is told of drafts.
        """
        plain = [self._drive_plain(run)]
        before = self._engine.stats()
        driven = run()
        after = self._engine.stats()
        plain.append(self._drive_plain(run))
        drafted, accepted = after.drafted - before.drafted, after.accepted - before.accepted
        tokens = after.drawn_tokens - before.drawn_tokens
        found = {
            "drafted": drafted,
            "accepted": accepted / drafted if drafted else None,
            "tokens_per_call": tokens / max(1, after.decode_calls - before.decode_calls),
            "of_plain": sum(plain) / 2 / driven.seconds,
        }
        return driven, {"drafts": found}

    def _drive_plain(self, run: Callable[[], Driven]) -> float:
        """The seconds of a load without drafts."""
        drafter = self._engine.speculate(None)
        try:
            return run().seconds
        finally:
            self._engine.speculate(drafter)


def drafts_words(found: dict[str, Any]) -> str:
    """A line about them."""
    right = found["accepted"]
    share = "" if right is None else f", {right:.2f} of them right"
    return (
        f"{found['drafted']:,.0f} drafts{share}; {found['tokens_per_call']:.2f} tokens a call;"
        f" {found['of_plain']:.2f} times as fast as the same load without drafts"
    )
