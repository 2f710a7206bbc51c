"""Equal conditions: what must be the same in all runs that are to be compared."""

from collections.abc import Collection, Mapping
from typing import Any

from moejax.config.checks import check
from moejax.config.config import Config
from moejax.config.files import differences
from moejax.data.tokenizer import choose_vocab_size, load_tokenizer
from moejax.models.counts import cost

PLACES = ("data.directory", "data.prefetch")
"""Settings of the data that change no batch."""
EQUAL_IN_RUNS = ("run.steps", "run.eval_batches")
"""Settings of a run that must be equal; of the data all must be, but for the seed."""


def check_conditions(
    runs: Mapping[str, Config], flops_tolerance: float | None, may_differ: Collection[str] = ()
) -> None:
    """All runs must train on the same batches, for as many steps, and be evaluated on the same
    text; the largest active FLOPs of a token may exceed the smallest by ``flops_tolerance``, a
    share of the smallest (None: by any). Settings of ``may_differ`` need not be equal. Raises
    ``ConfigError``.
    """
    first, *others = runs
    for name in others:
        differ = {
            field: pair
            for field, pair in differences(runs[first], runs[name]).items()
            if _must_be_equal(field) and field not in may_differ
        }
        check(not differ, f"the runs do not compare: {_words(differ, first, name)}. Give both one.")
    if flops_tolerance is None:
        return
    flops = {name: flops_per_token(config) for name, config in runs.items()}
    least, most = (of(flops, key=lambda name: flops[name]) for of in (min, max))
    check(
        flops[most] <= (1 + flops_tolerance) * flops[least],
        f"the runs are not of equal active size: a token costs {flops[most]:,} FLOPs in {most} and"
        f" {flops[least]:,} in {least}, {flops[most] / flops[least] - 1:.1%} more, and"
        f" Study.flops_tolerance is {flops_tolerance:.1%}. Change top_k, hidden_size,"
        f" shared_experts or dense_hidden_size; where it is meant, say Study(flops_tolerance=None)"
        f" and why.",
    )


def flops_per_token(config: Config) -> int:
    """Active FLOPs of a token in training."""
    if not config.model.material.language:  # the head, which all runs have alike, left out
        return cost(config.model, 0, config.positions).flops_per_token
    size = choose_vocab_size(config.model, load_tokenizer(config.data.tokenizer))
    return cost(config.model, size, config.positions).flops_per_token


def _must_be_equal(field: str) -> bool:
    of_data = field.startswith("data.") and field != "data.seed" and field not in PLACES
    return of_data or field in EQUAL_IN_RUNS


def _words(differ: dict[str, tuple[Any, Any]], first: str, other: str) -> str:
    return "; ".join(
        f"{field} is {one!r} in {first} and {two!r} in {other}"
        for field, (one, two) in differ.items()
    )
