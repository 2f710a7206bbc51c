"""Figures of a load that was sent, and their table."""

from collections import Counter
from typing import Any

import numpy as np

from moejax.lab.bench.serve_drafts import drafts_words
from moejax.lab.bench.serve_drive import Driven, Seen
from moejax.lab.bench.serve_moves import moves_words

QUANTILES = (50, 90, 99)
BUSY = 0.8
"""Of a core, from which on the client itself may have been what was slow."""


def describe(driven: Driven) -> dict[str, Any]:
    """How much was answered, and how soon. Milliseconds; times to the first token are counted from
    when a request was due, not from when the client came to send it.
    """
    good = [one for one in driven.seen if one.error is None and one.came]
    tokens = sum(one.tokens for one in good)
    errors = Counter(one.error or "no token came" for one in driven.seen if one not in good)
    sent_late = np.array([one.sent - one.due for one in driven.seen])
    gaps = [np.diff(one.came) for one in good]
    return {
        "requests": len(driven.seen),
        "answered": len(good),
        "failed": dict(errors.most_common()),
        "seconds": driven.seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / driven.seconds,
        "requests_per_second": len(good) / driven.seconds,
        "first_ms": quantiles(np.array([one.came[0] - one.due for one in good])),
        "token_ms": quantiles(np.array([per_token(one) for one in good if one.tokens > 1])),
        "gap_ms": quantiles(np.concatenate(gaps) if gaps else np.zeros(0)),
        "client": {
            "sent_late_ms": quantiles(sent_late),
            "loop_late_ms": quantiles(driven.loop_late),
            "core_share": driven.client_seconds / driven.seconds,
        },
    }


def per_token(one: Seen) -> float:
    """Seconds of each token of an answer but the first."""
    return (one.came[-1] - one.came[0]) / (one.tokens - 1)


def quantiles(seconds: np.ndarray) -> dict[str, float] | None:
    """Percentiles in milliseconds; None of nothing."""
    if not seconds.size:
        return None
    found = 1e3 * np.percentile(seconds, QUANTILES)
    return {f"p{q}": float(value) for q, value in zip(QUANTILES, found, strict=True)}


def report(result: dict[str, Any]) -> str:
    """The figures, line by line."""
    lines = [result["target"]]
    for point in result["points"]:
        lines += ["", *_report_point(point)]
    if "picture" in result:
        lines += ["", f"picture: {result['picture']}"]
    return "\n".join(lines)


def pace_words(point: dict[str, Any]) -> str:
    """How requests came."""
    if point["rate"] is not None:
        return f"{point['rate']:.3g} a second"
    return "as recorded" if point["at_once"] is None else f"{point['at_once']} at once"


def _report_point(point: dict[str, Any]) -> list[str]:
    failed = sum(point["failed"].values())
    heads = "".join(f"{f'{q} %':>10}" for q in QUANTILES)
    lines = [
        f"{point['requests']} requests, {pace_words(point)}: {point['answered']} answered, {failed}"
        f" failed, {point['seconds']:.1f} s",
        f"{point['tokens_per_second']:,.0f} tokens/s, {point['requests_per_second']:.2f} answers/s",
        f"{'milliseconds':<28}{heads}",
    ]
    rows = {"first_ms": "to the first token", "token_ms": "each further token"}
    rows |= {"gap_ms": "between two parts of a text"}
    for name, words in rows.items():
        lines.append(f"{words:<28}" + _cells(point[name]))
    lines.append(f"{'sent late, by the client':<28}" + _cells(point["client"]["sent_late_ms"]))
    lines.append(f"{'loop late, of the client':<28}" + _cells(point["client"]["loop_late_ms"]))
    share = point["client"]["core_share"]
    busy = ": it may be what was slow" if share > BUSY else ""
    lines.append(f"the client took {share:.2f} of a core{busy}")
    if "step" in point:
        step = point["step"]
        lines.append(
            f"the decode step alone, {step['rows']} texts: {step['ms']:.2f} ms,"
            f" {step['tokens_per_second']:,.0f} tokens/s; the load got {point['of_step']:.2f} of it"
        )
    if "generate_tokens_per_second" in point:
        lines.append(
            f"generate, one by one: {point['generate_tokens_per_second']:,.0f} tokens/s; the load"
            f" got {point['of_generate']:.1f} times as many"
        )
    if "drafts" in point:
        lines.append(drafts_words(point["drafts"]))
    if "experts" in point:
        lines.append(moves_words(point["experts"]))
    lines += [f"failed, {number} times: {why}" for why, number in point["failed"].items()]
    return lines


def _cells(found: dict[str, float] | None) -> str:
    values = ["-" if found is None else f"{found[f'p{q}']:,.2f}" for q in QUANTILES]
    return "".join(f"{value:>10}" for value in values)
