"""Tiny models by kin, a file each: a new family is a new file, or more lines in its kin's.

Each file has ``CASES``, a ``config.json`` by the name of the case, the families' first ones first,
and ``LEAST``, by family the fields that every ``config.json`` of it has besides those of
``shared.LEAST``: all others have defaults. ``RENAMED``, where there is one, has parts of tensors'
names on disk that transformers' own model calls something else; ``ALIASES`` has families that are
another one by another name, which transformers has no class for; ``ZERO_CENTRED`` has families
whose norms multiply by 1 plus their weights.
"""

import importlib
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {}
LEAST: dict[str, dict[str, Any]] = {}
RENAMED: dict[str, str] = {}
ALIASES: dict[str, str] = {}
ZERO_CENTRED: set[str] = set()

for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    kin = importlib.import_module(f"hf_cases.{file.stem}")
    CASES |= getattr(kin, "CASES", {})
    LEAST |= getattr(kin, "LEAST", {}) if file.stem != "shared" else {}
    RENAMED |= getattr(kin, "RENAMED", {})
    ALIASES |= getattr(kin, "ALIASES", {})
    ZERO_CENTRED |= getattr(kin, "ZERO_CENTRED", set())
