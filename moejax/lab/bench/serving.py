"""How fast a model is served: a load of given rates and lengths, in this process or by HTTP.

Beside it, in the same run: the decode step alone at that many texts, and `generate` prompt by
prompt.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moejax.config.checks import check, check_sizes
from moejax.inference.engine.engine import Engine
from moejax.inference.engine.requests import Request
from moejax.inference.sampling import Sampling
from moejax.lab.bench.serve_alone import OneByOne
from moejax.lab.bench.serve_drive import AskOne, Driven, Seen, drive
from moejax.lab.bench.serve_figures import describe
from moejax.lab.bench.serve_load import Ask, LoadSettings, Texts, draw_arrivals, make_load

SWEEP = (0.25, 0.5, 0.7, 0.85, 1.0, 1.2)
"""Of what is answered with all seats taken, the rates of --sweep."""
WARM = 8
"""Requests that do not count, before all others."""


@dataclass(frozen=True, kw_only=True)
class ServeBench(LoadSettings):
    """Which requests are sent, how fast, and what is measured."""

    rate: tuple[float, ...] = ()
    """Requests a second, as a Poisson process; several rates are measured one after the other, and
    drawn (--output)."""
    at_once: int | None = None
    """Without --rate: so many requests are under way at any time, by default as many as there are
    seats (32 with --url)."""
    sweep: bool = False
    """First --at-once, then rates from a quarter of what was answered to 1.2 of it."""
    compare: int = 0
    """Also continue so many of the requests by `moejax generate`, one by one."""
    rounds: int = 1
    """Times that all is measured, each time other requests of the same kind; medians are told."""
    output: Path = Path("serve.html")
    """The picture that is drawn if there are several rates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes("", self, "at_once", "rounds")
        check(self.compare >= 0, f"--compare must be at least 0, not {self.compare}.")
        check(
            all(np.isfinite(rate) and rate > 0 for rate in self.rate),
            f"--rate must be greater than 0, not {' '.join(map(str, self.rate))}.",
        )
        check(not (self.sweep and self.rate), "--sweep chooses the rates: leave --rate out.")
        check(
            not (self.rate and self.at_once),
            "--rate and --at-once are two ways in which requests come: give one of them.",
        )
        if self.draws:
            folder = self.output.parent
            check(folder.is_dir(), f"--output {self.output}: there is no {folder}.")

    @property
    def draws(self) -> bool:
        """Whether there are several rates."""
        return self.sweep or len(self.rate) > 1


def drive_once(run: Callable[[], Driven]) -> tuple[Driven, dict[str, Any]]:
    """Send a load; nothing is told beside it."""
    return run(), {}


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked, and what it is compared with."""

    words: str
    ask: AskOne
    texts: Texts
    at_once: int
    """Texts that run at once, where nobody says."""
    step: Callable[[int, int], float] | None = None
    """Seconds of a decode step of so many texts of up to so many tokens, alone."""
    one_by_one: OneByOne | None = None
    drive: Callable[[Callable[[], Driven]], tuple[Driven, dict[str, Any]]] = drive_once
    """How a load is sent, and what is told beside it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else is told."""


def ask_engine(engine: Engine, temperature: float, seed: int) -> AskOne:
    """A request to an engine in this process."""

    async def ask_one(number: int, ask: Ask, seen: Seen) -> None:
        sampling = Sampling(tokens=ask.tokens, temperature=temperature, seed=seed)
        request = Request(prompt=ask.prompt, sampling=sampling, number=number, ends=frozenset())
        async for piece in engine.submit(request):
            seen.hear(len(piece.tokens))

    return ask_one


def measure(bench: ServeBench, target: Target) -> dict[str, Any]:
    """Send all loads; the object that ``--json`` prints. Raises ``ConfigError``."""
    load = make_load(bench, target.texts, bench.seed + bench.rounds)  # of no round
    recorded = load[0].at is not None and not (bench.rate or bench.at_once or bench.sweep)
    at_once = None if recorded or bench.rate else bench.at_once or target.at_once
    warm = load[:WARM]
    asyncio.run(drive(warm, target.ask, at_once=len(warm)))
    points = [measure_point(bench, target, rate, None) for rate in bench.rate]
    if not bench.rate:
        points.append(measure_point(bench, target, None, at_once))
    if bench.sweep:
        most = points[0]["requests_per_second"]
        check(most > 0, "--sweep: no request was answered.")
        points += [measure_point(bench, target, share * most, None) for share in SWEEP]
    return {"target": target.words, **target.facts, "points": points}


def measure_point(
    bench: ServeBench, target: Target, rate: float | None, at_once: int | None
) -> dict[str, Any]:
    """One way in which requests come: all rounds of it."""
    rounds = []
    for number in range(bench.rounds):
        seed = bench.seed + number
        asks = make_load(bench, target.texts, seed)
        at = _times(asks, rate, at_once, seed)
        rounds.append(_measure_round(bench, target, asks, at, at_once))
    asked = sum(one.tokens for one in asks) / len(asks) * rate if rate is not None else None
    return {
        "rate": rate,
        "at_once": at_once,
        "asked_tokens_per_second": asked,
        **_middle(rounds),
        "rounds": len(rounds),
    }


def _times(
    asks: Sequence[Ask], rate: float | None, at_once: int | None, seed: int
) -> np.ndarray | None:
    if rate is not None:
        return draw_arrivals(rate, seed, len(asks))
    return None if at_once is not None else np.array([ask.at for ask in asks])


def _measure_round(
    bench: ServeBench,
    target: Target,
    asks: list[Ask],
    at: np.ndarray | None,
    at_once: int | None,
) -> dict[str, Any]:
    """A load between two looks at the step alone, so that a slow moment of the machine hits both;
    then some of it one by one.
    """
    rows = min(at_once or target.at_once, target.at_once)
    longest = max(len(ask.prompt) + ask.tokens for ask in asks)
    steps = []
    if target.step is not None:
        steps.append(target.step(rows, longest))
    run = partial(drive, asks, target.ask, at=at, at_once=at_once or 1)
    driven, more = target.drive(lambda: asyncio.run(run()))
    found = describe(driven) | more
    if target.step is not None:
        seconds = float(np.mean([*steps, target.step(rows, longest)]))
        found["step"] = {"rows": rows, "ms": 1e3 * seconds, "tokens_per_second": rows / seconds}
        found["of_step"] = found["tokens_per_second"] * seconds / rows
    if target.one_by_one is not None:
        alone = target.one_by_one.tokens_per_second(asks[: bench.compare])
        found["generate_tokens_per_second"] = alone
        found["of_generate"] = found["tokens_per_second"] / alone
    return found


def _middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of all figures; of failures and counts, the sums. What is None in a round was
    not seen in it.
    """
    merged: dict[str, Any] = {}
    for name in rounds[0]:
        values = [one[name] for one in rounds if one.get(name) is not None]
        if name == "failed":
            merged[name] = {
                why: sum(one.get(why, 0) for one in values) for one in values for why in one
            }
        elif name in ("requests", "answered", "tokens", "seconds"):
            merged[name] = sum(values)
        elif not values:
            merged[name] = None
        elif name == "rows":
            merged[name] = values[0]
        elif isinstance(values[0], dict):
            merged[name] = _middle(values)
        else:
            merged[name] = float(np.median(values))
    return merged
