"""Recorded routes on disk: texts, and which experts each of their tokens chose.

A file is in the format of safetensors. It has, of all texts one behind another:

    tokens          int32 [T]                   each text, its prompt first
    routes          int8 or int16 [T, L, K]     by token, routed layer and choice; -1 for no expert
    lengths         int32 [texts]               tokens of each text
    prompt_lengths  int32 [texts]               those of its prompt

and in its head, as text: ``format`` (``moejax-routes-1``), and what else ``settings`` say, such as
the model. What a router chose first comes first. A token that the model has not read has -1: the
last one of a text that is as long as was asked for.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.runtime.atomic_files import write_file

FORMAT = "moejax-routes-1"
ARRAYS = {"tokens": 1, "routes": 3, "lengths": 1, "prompt_lengths": 1}
"""What a file has, and the number of dimensions of each."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Texts and their routes."""

    tokens: list[np.ndarray]
    """Of each text, int32 [T]: its prompt, and what was generated after it."""
    routes: list[np.ndarray]
    """Of each text, int [T, L, K], -1 for no expert."""
    prompt_lengths: list[int]
    """How many tokens of each text are its prompt."""
    settings: dict[str, str] = field(default_factory=dict)
    """What else is known, such as the model."""


def write_recording(file: Path, recording: Recording) -> None:
    """Write a recording of at least one text, whole or not at all. An ``OSError`` names ``file``.

    Numbers of experts take one byte where all are below 128, else two.
    """
    routes_TLK = np.concatenate(recording.routes)
    arrays = {
        "tokens": np.concatenate(recording.tokens).astype(np.int32),
        "routes": routes_TLK.astype(np.int8 if routes_TLK.max(initial=0) < 128 else np.int16),
        "lengths": np.array([len(one) for one in recording.tokens], np.int32),
        "prompt_lengths": np.array(recording.prompt_lengths, np.int32),
    }
    head = recording.settings | {"format": FORMAT}
    write_file(file, lambda opened: opened.write(save(arrays, metadata=head)))


def read_recording(file: Path) -> Recording:
    """Read what ``write_recording`` wrote. Raises ``ConfigError`` for anything else."""
    try:
        with safe_open(file, framework="numpy") as opened:
            head = dict(opened.metadata() or {})
            there = set(opened.keys())
            found = {name: opened.get_tensor(name) for name in ARRAYS if name in there}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} cannot be read as routes: {error}.") from error
    check(
        head.pop("format", None) == FORMAT and len(found) == len(ARRAYS),
        f"{file} has no routes that moejax wrote (format {FORMAT}): it has"
        f" {', '.join(sorted(there)) or 'nothing'}. Arrays of another program are read by"
        f" moejax.data.routes.fit_routes.",
    )
    lengths = found["lengths"]
    whole = all(found[name].ndim == count for name, count in ARRAYS.items()) and (
        len(found["tokens"]) == len(found["routes"]) == lengths.sum()
        and len(found["prompt_lengths"]) == len(lengths) > 0
        and (found["prompt_lengths"] <= lengths).all()
        and (lengths > 0).all()
    )
    check(whole, f"{file} is broken: its arrays are not of as many tokens as its lengths say.")
    ends = np.cumsum(lengths)[:-1]
    return Recording(
        tokens=np.split(found["tokens"], ends),
        routes=np.split(found["routes"], ends),
        prompt_lengths=found["prompt_lengths"].tolist(),
        settings=head,
    )
