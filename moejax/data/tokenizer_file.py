"""A ``tokenizer.json``, read with care. It is a program of a kind: normalisers and decoders replace
text by text, one after the other. None may let a text grow without bound.
"""

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moejax.config.checks import check, shorten
from moejax.config.errors import ConfigError
from moejax.config.json_files import MEBIBYTE, read_bounded
from moejax.data.rust_failures import explain_failure

MOST_BYTES = 128 * MEBIBYTE
"""Of a ``tokenizer.json``; the largest released ones have some 35 MB."""
MOST_GROWTH, MOST_ADDED = 256, 100_000
"""A text may grow so many times, and by so many characters besides. Unicode's own normal forms need
18 times.
"""
OTHERS_GROWTH = {"NFKC": 18, "NFKD": 18, "NFC": 3, "NFD": 4, "Lowercase": 3, "ByteLevel": 4}
OTHERS_GROWTH["BertNormalizer"] = 4
"""How many characters these make of one at most; all others not mentioned here, one."""


class Growth:
    """How much the normalisers of a tokenizer, or its decoders, may let a text grow."""

    def __init__(self, at: str, part: Any) -> None:
        """``part``: the library's normaliser or decoder, or None; ``at``: whose it is."""
        stages = None if part is None else json.loads(part.__getstate__())
        self._at, self._stages = at, [*_list_stages(stages)]
        self.times = measure_growth(self._stages)

    def check(self, text: str) -> None:
        """Raise ``ConfigError`` if normalisers make a text too large: they are run one by one, if
        it may be that they do together.
        """
        if self.times <= MOST_GROWTH:
            return
        most = MOST_GROWTH * len(text) + MOST_ADDED
        for stage in self._stages:
            size = count_after(stage, text)
            check(
                size <= most,
                f"{self._at} has normalisers that make a text of {size:,.0f} characters and more:"
                f" {shorten(stage)}.",
            )
            text = _run_stage(stage, text)


def open_file(path: Path) -> tuple[bytes, Any, Growth]:
    """The bytes of a ``tokenizer.json``, the library's tokenizer, and how much its normalisers may
    let a text grow. Raises ``ConfigError``.
    """
    from tokenizers import Tokenizer

    at = f"--data.tokenizer {path}"
    wrong = f"{at} is not a Hugging Face tokenizer.json"
    try:
        data = read_bounded(path, MOST_BYTES)
        with explain_failure(wrong):
            backend = Tokenizer.from_buffer(data)
    except (OSError, ValueError) as error:
        reason = str(error)
        reason = reason if len(reason) < 300 else f"{reason[:300]}..."
        raise ConfigError(f"{wrong}: {reason}.") from error
    # Whatever the file asks for, a document is encoded whole and as it stands.
    backend.no_truncation()
    backend.no_padding()
    decoding = Growth(at, backend.decoder)
    check(
        decoding.times <= MOST_GROWTH,
        f"{at} has decoders that make {decoding.times:,.0f} characters of one.",
    )
    return data, backend, Growth(at, backend.normalizer)


def measure_growth(stages: list[dict[str, Any]]) -> float:
    """How many characters come out for each that goes in, at most, of a text of some length."""
    return math.prod(max(1.0, grow(stage, 1000) / 1000) for stage in stages)


def grow(stage: dict[str, Any], size: int) -> float:
    """The most characters that a normaliser or decoder makes of so many."""
    kind = stage.get("type")
    if kind == "Replace":
        before, after = stage["pattern"].get("String"), len(stage["content"])
        if not before:  # a pattern, which may match nothing at all, between any two characters
            return size + (size + 1) * after
        return size * max(1.0, after / len(before))
    if kind == "Precompiled" and stage["precompiled_charsmap"]:
        table = base64.b64decode(stage["precompiled_charsmap"])
        texts = table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")
        return size * max(len(part.decode("utf-8", "replace")) for part in texts)
    return size * OTHERS_GROWTH.get(str(kind), 1) + len(stage.get("prepend") or "")


def count_after(stage: dict[str, Any], text: str) -> float:
    """How many characters a normaliser makes of a text, at most."""
    before = stage["pattern"].get("String") if stage.get("type") == "Replace" else None
    if not before:
        return grow(stage, len(text))
    return len(text) + text.count(before) * (len(stage["content"]) - len(before))


def _list_stages(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The parts of a sequence, at any depth."""
    if part is None:
        return
    inside = part.get("normalizers") or part.get("decoders") or []
    for inner in inside:
        yield from _list_stages(inner)
    if not inside:
        yield part


def _run_stage(stage: dict[str, Any], text: str) -> str:
    from tokenizers import normalizers

    one = normalizers.Sequence([])
    one.__setstate__(json.dumps(stage).encode())
    return one.normalize_str(text)
