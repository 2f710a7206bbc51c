"""The picture of `moejax bench serve`: how long answers take, over how much is asked."""

from typing import Any

import numpy as np

from moejax.lab.bench.serve_figures import QUANTILES, pace_words
from moejax.runs.pages import page
from moejax.runs.pages.charts import Series, line_chart
from moejax.runtime.number_words import four_digits

_X = "asked"
"""Under the charts: tokens a second that are asked for."""


def write_page(result: dict[str, Any]) -> str:
    """A page that stands alone, with a chart of each figure over the tokens a second that were
    asked for, and a table.
    """
    points = sorted(
        (one for one in result["points"] if one["rate"] is not None),
        key=lambda one: one["asked_tokens_per_second"],
    )
    step = next((one["step"]["tokens_per_second"] for one in points if "step" in one), None)
    figures = [
        page.figure("Time to the first token, ms", _latency(points, "first_ms"), _FIRST),
        page.figure("Time of each further token, ms", _latency(points, "token_ms"), _TOKEN),
        page.figure("Tokens a second, answered", _answered(points, step), _ANSWERED),
    ]
    words = f"{result['target']}. Requests come by a Poisson process, at several rates."
    body = (
        f"<h1>Latency and throughput</h1><p>{page.text(words)}</p>"
        + page.section("By how much is asked", figures)
        + _table(result["points"])
    )
    return page.document("moejax bench serve", body)


_FIRST = "From when a request was due. It climbs where more is asked than is answered."
_TOKEN = "Of each answer, the mean over its tokens but the first."
_ANSWERED = "On the dotted line, all that is asked for is answered."


def _latency(points: list[dict[str, Any]], name: str) -> str:
    asked = np.array([one["asked_tokens_per_second"] for one in points])
    series = [
        Series(
            f"{q} %",
            asked,
            np.array([np.nan if one[name] is None else one[name][f"p{q}"] for one in points]),
            color,
            dots=True,
        )
        for color, q in enumerate(QUANTILES)
    ]
    return line_chart(series, log=True, x_name=_X)


def _answered(points: list[dict[str, Any]], step: float | None) -> str:
    asked = np.array([one["asked_tokens_per_second"] for one in points])
    got = np.array([one["tokens_per_second"] for one in points])
    series = [
        Series("answered", asked, got, 0, dots=True),
        Series("asked", asked, asked, 1, dash=2),
    ]
    guides = [] if step is None else [(step, f"the decode step alone: {four_digits(step)}")]
    include = (0.0,) if step is None else (0.0, step)
    return line_chart(series, include=include, guides=guides, x_name=_X)


def _table(points: list[dict[str, Any]]) -> str:
    head = ["requests", "tokens/s", "answers/s", "failed"]
    head += [f"first {q} %" for q in QUANTILES] + [f"token {q} %" for q in QUANTILES]
    rows = [
        [
            pace_words(one),
            f"{one['tokens_per_second']:,.0f}",
            f"{one['requests_per_second']:.2f}",
            sum(one["failed"].values()),
            *_cells(one["first_ms"]),
            *_cells(one["token_ms"]),
        ]
        for one in points
    ]
    return f"<section><h2>Figures, times in ms</h2>{page.table(head, rows)}</section>"


def _cells(found: dict[str, float] | None) -> list[str]:
    return ["-" if found is None else four_digits(found[f"p{q}"]) for q in QUANTILES]
