"""Heatmaps as inline SVG around a small PNG, whose transparency lets the page's colour through.

A cell is a level of a palette. The levels of a *ratio* palette count tenths of an octave around 1:
a fair ratio is transparent, a larger one is warm, a smaller one is cold, and a ratio of nothing has
a colour of its own. A *lift* palette has these colours twice; the second ones are pale, for what
may be chance. The levels of a *share* palette run from 0, which is transparent, to the largest
value.

Letters: X: columns of a map; Y: rows of a map.
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np

from moejax.runs.pages.charts import LEFT, PLOT, TOP, Axis, chart_frame, plot_area, x_labels

REACH = 20
"""Levels on each side of 1 in a ratio palette: two octaves, a quarter to four times the mean."""
NOTHING = 2 * REACH + 1
"""The level of no choice at all."""
WARM, COLD, EMPTY = (232, 89, 12), (24, 119, 214), (190, 24, 148)
MOST_ROWS = 64
LONGEST_NAME = 16
"""Letters of the name of a row; longer names are cut."""
NAME_UNITS = 9
"""Width of a letter of such a name on a phone, in units of the drawing."""


def ratios(load_RE: np.ndarray) -> np.ndarray:
    """Load over its row's mean; 1 in a row without any load."""
    mean_R1 = load_RE.mean(-1, keepdims=True)
    return np.divide(load_RE, mean_R1, out=np.ones(load_RE.shape), where=mean_R1 > 0)


def change_ratios(after_RE: np.ndarray, before_RE: np.ndarray) -> np.ndarray:
    """What has become of each load, over what it was; 1 where there was nothing and is nothing."""
    from_none_RE = np.where(after_RE > 0, np.inf, 1.0)
    return np.divide(after_RE, before_RE, out=from_none_RE, where=before_RE > 0)


def ratio_levels(load_RE: np.ndarray) -> np.ndarray:
    """Load over its row's mean as levels of the ratio palette; a row without any load is fair."""
    return levels_of_ratios(ratios(load_RE))


def levels_of_ratios(ratio_RE: np.ndarray) -> np.ndarray:
    """Ratios as levels of the ratio palette."""
    return np.where(ratio_RE > 0, _levels(ratio_RE), NOTHING).astype(np.uint8)


def _levels(ratio_YX: np.ndarray) -> np.ndarray:
    octaves_YX = np.log2(np.maximum(ratio_YX, 1e-9))
    return np.clip(np.rint(REACH * (1 + octaves_YX / 2)), 0, 2 * REACH).astype(np.uint8)


def fold_rows(level_YX: np.ndarray, most: int = MOST_ROWS) -> np.ndarray:
    """At most ``most`` rows: of neighbours, the one farthest from fair, so no fault is hidden."""
    if len(level_YX) <= most:
        return level_YX
    far_YX = np.where(level_YX == NOTHING, 255, np.abs(level_YX.astype(int) - REACH))
    size = -(-len(level_YX) // most)
    folded = []
    for start in range(0, len(level_YX), size):
        pick_1X = far_YX[start : start + size].argmax(0)[None]
        folded.append(np.take_along_axis(level_YX[start : start + size], pick_1X, 0)[0])
    return np.stack(folded)


def name_folded_rows(names: Sequence[int], most: int = MOST_ROWS) -> list[str]:
    """The names of the rows of ``fold_rows``: `7`, or `4–7` for four neighbours in one row."""
    size = -(-len(names) // most)
    groups = [names[start : start + size] for start in range(0, len(names), size)]
    return [f"{g[0]}–{g[-1]}" if len(g) > 1 else f"{g[0]}" for g in groups]


def ratio_heatmap(
    level_YX: np.ndarray,
    x: tuple[float, float],
    y_names: Sequence[str],
    x_name: str,
    y_name: str,
    remark: str = "",
    words_YX: np.ndarray | None = None,
    blocks: Sequence[str] = (),
) -> str:
    """A map of ratio levels; ``x``: the values at its left and right edge.

    ``remark`` stands above the map, ``words_YX`` in its cells. ``blocks`` names blocks of rows of
    equal size, which then have the labels, and a line between them.
    """
    data = {"kind": "ratio", "rows": [y_name, *y_names], "columns": x_name}
    labels = blocks or [name.partition("–")[0] for name in y_names]
    return _heatmap(level_YX, _ratio_palette(), data, x, labels, remark, words_YX)


def lift_heatmap(
    lift_YX: np.ndarray,
    sure_YX: np.ndarray,
    y_names: Sequence[str],
    x_names: Sequence[str],
    x_name: str,
    y_name: str,
    remark: str = "",
    words_YX: np.ndarray | None = None,
) -> str:
    """A map of ratios; those that are not ``sure`` are pale. Every row has its label; the
    columns are numbered, and those that have another name are named where there is room. In the
    cells stand ``words_YX``, by default those ratios that are sure; nothing if there are many.
    """
    count = len(x_names)
    level_YX = _levels(lift_YX) + np.where(sure_YX, 0, 2 * REACH + 1).astype(np.uint8)
    if words_YX is None:
        words_YX = np.where(sure_YX, np.char.mod("%.2f", lift_YX), "")
    words_YX = words_YX if count <= 10 else None
    data = {"kind": "lift", "rows": [y_name, *y_names], "columns": x_name, "names": [*x_names]}
    edges, labels = (-0.5, count - 0.5), _shorten(y_names)
    return _heatmap(level_YX, _lift_palette(), data, edges, labels, remark, words_YX, named=True)


def _shorten(names: Sequence[str]) -> list[str]:
    return [n if len(n) <= LONGEST_NAME else n[: LONGEST_NAME - 1] + "…" for n in names]


def share_heatmap(
    share_YX: np.ndarray, x: tuple[float, float], y_names: Sequence[str], x_name: str, y_name: str
) -> str:
    """A map of shares, from 0 (transparent) to their maximum, which the line above it gives."""
    top = float(share_YX.max()) or 1.0
    data = {"kind": "share", "top": top, "rows": [y_name, *y_names], "columns": x_name}
    remark = f"blank is none, full colour {share_YX.max():.3%}"
    labels = [name.partition("–")[0] for name in y_names]
    return _heatmap(_share_levels(share_YX, top), _share_palette(), data, x, labels, remark)


def named_share_heatmap(
    share_YX: np.ndarray,
    y_names: Sequence[str],
    x_names: Sequence[str],
    x_name: str,
    y_name: str,
    words_YX: np.ndarray | None = None,
) -> str:
    """A map of shares of a row, from 0 to 1, whose rows and columns have names."""
    count = len(x_names)
    data = {"kind": "share", "top": 1.0, "rows": [y_name, *y_names]}
    data |= {"columns": x_name, "names": [*x_names]}
    edges, levels = (-0.5, count - 0.5), _share_levels(share_YX, 1.0)
    return _heatmap(
        levels, _share_palette(), data, edges, _shorten(y_names), "", words_YX, named=True
    )


def _share_levels(share_YX: np.ndarray, top: float) -> np.ndarray:
    return np.rint(share_YX / top * 63).astype(np.uint8)


def _share_palette() -> np.ndarray:
    alpha = np.rint(np.linspace(0, 1, 64) * 255)[:, None]
    return np.concatenate([np.full((64, 3), WARM), alpha], 1).astype(np.uint8)


def ratio_key(middle: str = "fair", with_nothing: bool = True) -> str:
    """The scale of the ratio palette, as a strip; ``middle`` names 1."""
    names = ("¼×", "½×", middle, "2×", "4×")
    none = '<div class="none-key">no token</div>' * with_nothing
    return f'<div class="scale">{none}{_strip(_ratio_palette(), 0, names)}</div>'


def lift_key() -> str:
    """The scales of the lift palette, sure and not, as strips."""
    names = ("¼×", "½×", "1×", "2×", "4×")
    pale = _strip(_lift_palette(), 2 * REACH + 1, ("may be chance",))
    return f'<div class="scale">{_strip(_lift_palette(), 0, names)}{pale}</div>'


def _strip(palette: np.ndarray, first: int, names: Sequence[str]) -> str:
    level_YX = np.arange(first, first + 2 * REACH + 1, dtype=np.uint8)[None]
    words = "".join(f"<span>{name}</span>" for name in names)
    return (
        '<div><svg viewBox="0 0 200 12" preserveAspectRatio="none">'
        f"{_image(level_YX, palette, 200, 12)}</svg><div>{words}</div></div>"
    )


def _ratio_palette() -> np.ndarray:
    """Red, green, blue, alpha of each level; an alpha of 254 marks ``NOTHING`` for the script."""
    octave = np.linspace(-1, 1, 2 * REACH + 1)
    alpha = np.rint(np.abs(octave) ** 0.75 * 255)[:, None]
    colors = np.where(octave[:, None] > 0, WARM, COLD)
    empty = np.array([[*EMPTY, 254]])
    return np.concatenate([np.concatenate([colors, alpha], 1), empty]).astype(np.uint8)


def _lift_palette() -> np.ndarray:
    """The colours of the ratio palette, sure and pale: the last bit of the alpha says which."""
    color, alpha = np.split(_ratio_palette()[:NOTHING].astype(int), [3], axis=1)
    sure, pale = alpha & ~1, alpha // 4 | 1
    palettes = [np.concatenate([color, kind], 1) for kind in (sure, pale)]
    return np.concatenate(palettes).astype(np.uint8)


def _heatmap(
    level_YX: np.ndarray,
    palette: np.ndarray,
    data: dict,
    x: tuple[float, float],
    labels: Sequence[str],
    remark: str = "",
    words_YX: np.ndarray | None = None,
    named: bool = False,
) -> str:
    """``labels`` divide the rows evenly, so there may be fewer of them than rows; if the rows are
    ``named``, each has its label, and room for it.
    """
    (rows, columns), count = level_YX.shape, len(labels)
    height = int(np.clip((16 if words_YX is None else 32) * rows, 64, 208))
    margin = 0
    if named:
        height = 20 * rows
        margin = max(0, NAME_UNITS * max(map(len, labels)) + 8 - LEFT)
    image = _image(level_YX, palette, PLOT, height)
    gaps = "".join(f"M0,{height * i / count:.1f}h{PLOT}" for i in range(1, count))
    kind = "gaps" if count == rows else "borders"
    image += f'<path class="{kind}" d="{gaps}"/>' if count <= 16 else ""
    image += "" if words_YX is None else _write_cells(words_YX, height)
    stride = 1 if named else max(1, round(count / (8 if count > 16 else 12)))
    words = "".join(
        f'<text x="{LEFT - 8}" y="{TOP + height * (i + 0.5) / count + 4:.1f}" class="end">'
        f"{escape(labels[i])}</text>"
        for i in range(0, count, stride)
    )
    border = f'<rect class="border" x="{LEFT}" y="{TOP}" width="{PLOT}" height="{height}"/>'
    body = plot_area(image, height) + border + words
    body += x_labels(Axis(*x, PLOT), height, data["columns"])
    data |= {"x": list(x), "cells": [columns, rows], "top_edge": TOP, "height": height}
    return chart_frame(data, f'<span class="rest">{escape(remark)}</span>', body, height, margin)


def _write_cells(words_YX: np.ndarray, height: int) -> str:
    rows, columns = words_YX.shape
    return "".join(
        f'<text class="mid word" x="{PLOT * (i + 0.5) / columns:.1f}"'
        f' y="{height * (j + 0.5) / rows + 4:.1f}">{escape(str(words_YX[j, i]))}</text>'
        for j in range(rows)
        for i in range(columns)
    )


def _image(level_YX: np.ndarray, palette: np.ndarray, width: int, height: int) -> str:
    code = base64.b64encode(_png(level_YX, palette)).decode("ascii")
    return (
        f'<image width="{width}" height="{height}" preserveAspectRatio="none"'
        f' href="data:image/png;base64,{code}"/>'
    )


def _png(level_YX: np.ndarray, palette: np.ndarray) -> bytes:
    """A PNG with a palette of (red, green, blue, alpha)."""
    height, width = level_YX.shape
    rows = b"".join(b"\0" + row.tobytes() for row in level_YX)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette[:, :3].tobytes()),
        (b"tRNS", palette[:, 3].tobytes()),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
