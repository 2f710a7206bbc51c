"""`moejax check` of a checkpoint in Hugging Face's format: what it is and what can be done with it,
by `config.json` and the heads of its files.
"""

import math
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from moejax.commands.describe_import import find_fault
from moejax.config.errors import UserError
from moejax.hf.codecs import CODECS, find_codec
from moejax.hf.configs import find_family, read_config
from moejax.hf.files import Tensor, find_files, read_json
from moejax.hf.quantise import choose_codec
from moejax.hf.reading import Survey, survey
from moejax.models.counts import cost
from moejax.runtime.number_words import count, short
from moejax.runtime.room import find_room

ALWAYS = ("import", "generate", "eval", "train", "specialisation", "quantise", "export")
BYTES = "kMGTPE"


def check_released(path: Path) -> dict[str, Any]:
    """The facts of a checkpoint, as JSON has them. ``refused`` says why it cannot be imported."""
    hf = read_json(path / "config.json")
    facts: dict[str, Any] = {"path": str(path), "model_type": hf.get("model_type"), "refused": None}
    try:
        found = survey(path)
    except UserError as error:
        return facts | _describe_refused(path, hf) | {"refused": str(error)}
    return facts | _describe_survey(path, found)


def _describe_refused(path: Path, hf: dict[str, Any]) -> dict[str, Any]:
    """What can be said of a checkpoint that is refused."""
    facts: dict[str, Any] = {}
    try:
        facts["files"] = len(find_files(path)[0])
        find_family(hf)
        facts["quantised"] = _name_codec(hf)
        config = read_config(hf)
        facts |= _count_parameters(config)
    except UserError:  # survey has said it
        pass
    return facts


def _name_codec(hf: dict[str, Any]) -> str | None:
    codec = find_codec(hf.get("quantization_config"))
    return None if codec is None else codec.describe()


def _count_parameters(config: Any) -> dict[str, Any]:
    price = cost(config, config.vocab_size, sequence_length=1)
    return {"parameters": price.parameters_total, "parameters_active": price.parameters_active}


def _describe_survey(path: Path, found: Survey) -> dict[str, Any]:
    """What a checkpoint that can be imported is."""
    plain = [source.kind for source in found.sources.values() if isinstance(source, Tensor)]
    packed = len(found.sources) - len(plain)
    memory = {
        kind: sum(
            math.prod(found.shapes[array]) * dtype.itemsize
            for array, dtype in found.choose_types(kind).items()
        )
        for kind in ("auto", "bfloat16", "float32")
    }
    room = find_room()
    vocab_size = found.config.vocab_size
    assert vocab_size is not None  # as in every config that is read from such a checkpoint
    return {
        **_count_parameters(found.config),
        "files": len({tensor.file for tensor in found.tensors.values()}),
        "tensors": len(found.tensors),
        "bytes": sum(tensor.nbytes for tensor in found.tensors.values()),
        "types": dict(Counter(plain)),
        "quantised": _name_codec(found.hf) if packed else None,
        "quantised_weights": packed,
        "left_out": dict(Counter(found.left_out.values())),
        "memory": memory,
        "fits_here": room is None or memory["auto"] <= room[0],
        "can": [*ALWAYS, "prune" if any(found.config.routed_layers) else "upcycle"],
        "export_quantised": _list_exports(found),
        "note": find_fault(path, vocab_size) or None,
    }


def _list_exports(found: Survey) -> list[str]:
    """The codecs in which it can be written."""
    names = []
    for name in CODECS:
        try:
            choose_codec(name, found.family, found.entries, found.hf)
        except UserError:
            continue
        names.append(name)
    return names


def describe_released(facts: dict[str, Any]) -> dict[str, str]:
    """The facts as rows of words."""
    rows = {"family": str(facts["model_type"])}
    if "parameters" in facts:
        rows["family"] += (
            f": {short(facts['parameters'], 'kMBT')} parameters,"
            f" {short(facts['parameters_active'], 'kMBT')} active a token"
        )
    if "files" in facts:
        rows["on disk"] = count(facts["files"], "file")
    if facts["refused"] is not None:
        return rows | ({"weights": facts["quantised"]} if facts.get("quantised") else {})
    rows["on disk"] += f", {count(facts['tensors'], 'tensor')}, {short(facts['bytes'], BYTES)}B"
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in facts["types"].items())
    rows["weights"] = kinds
    if facts["quantised"]:
        rows["weights"] += (
            f", {facts['quantised_weights']:,} in codes ({facts['quantised']}), which are decoded"
            f" as they are read"
        )
    for number, (reason, tensors) in enumerate(facts["left_out"].items()):
        rows["left out" if not number else f"left out {number + 1}"] = (
            f"{count(tensors, 'tensor')}: {reason}"
        )
    memory = {kind: f"{short(size, BYTES)}B" for kind, size in facts["memory"].items()}
    rows["memory"] = f"{memory['auto']} as `moejax import` keeps them ({memory['bfloat16']} in"
    rows["memory"] += f" bfloat16, {memory['float32']} in float32)"
    if not facts["fits_here"]:
        rows["memory"] += ": more than there is here. With --mesh every device holds a part."
    rows["can"] = ", ".join(facts["can"])
    if facts["export_quantised"]:
        rows["can"] += f" (--quantise {', '.join(facts['export_quantised'])})"
    if facts["note"]:
        rows["note"] = facts["note"]
    return rows | {"next": f"moejax import {shlex.quote(facts['path'])} NEW"}
