"""What experts that follow the load did to a load that was sent.

Letters: Q: devices that hold experts.
"""

from collections.abc import Callable
from typing import Any

from moejax.inference.engine.engine import Engine
from moejax.lab.bench.serve_drive import Driven
from moejax.moe.parallel.replan import weigh_layers

Drive = Callable[[Callable[[], Driven]], tuple[Driven, dict[str, Any]]]


def with_moves(engine: Engine, drive: Drive) -> Drive:
    """``drive``, and what moved in the meantime. The balances are means over largest loads of the
    devices, as ``Rebalancer`` says them, of the last move; None where none was made.
    """

    def drive_and_tell(run: Callable[[], Driven]) -> tuple[Driven, dict[str, Any]]:
        before = engine.balance
        driven, found = drive(run)
        after = engine.balance
        assert before is not None and after is not None  # something moves experts
        moved = after.moves > before.moves
        return driven, found | {
            "experts": {
                "moves": after.moves - before.moves,
                "copied": after.copied - before.copied,
                "balance_before": _weigh(after.before_LQ) if moved else None,
                "balance_after": _weigh(after.after_LQ) if moved else None,
                "balance_now": _weigh(after.now_LQ),
            }
        }

    return drive_and_tell


def _weigh(load_LQ: Any) -> float | None:
    return None if load_LQ is None else weigh_layers(load_LQ)


def moves_words(found: dict[str, Any]) -> str:
    """A line about them."""
    if not found["moves"]:
        return (
            f"experts stayed; mean over largest load of devices, last interval:"
            f" {found['balance_now']:.3f}"
        )
    return (
        f"experts moved {found['moves']:g} times, {found['copied']:g} copies; mean over largest"
        f" load of devices {found['balance_before']:.3f} -> {found['balance_after']:.3f} by the"
        f" last plan, {found['balance_now']:.3f} in the last interval"
    )
