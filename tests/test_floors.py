"""The house: a file imports only from below it, and few levels lead from the ground to the top."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "moejax"

ROOMS = (
    ("config", "routing"),  # the ground: settings have the names of the routers
    ("runtime",),
    ("moe",),
    ("models",),
    ("data",),
    ("runs",),
    ("hf",),
    ("inference",),
    ("train",),
    ("lab",),
    ("commands",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
LEVELS = 21
ENTRIES = 12
WITHOUT_LINEN = ("routing", "moe")
WITH_LINEN = {PACKAGE / "moe" / name for name in ("layer.py", "parameters.py")}
"""The files of these rooms that declare parameters, and how they do."""


def name_of(file: Path) -> str:
    """The name by which a file is imported: ``moejax.moe.layer``."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in [*sorted(PACKAGE.rglob("*.py")), ROOT / "train.py"]}


@cache
def imports(name: str) -> frozenset[str]:
    """All modules that a file imports, anywhere in it, by full name."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in FILES else node.module)
    return frozenset(found - {name})


def inner(name: str) -> list[str]:
    """The files of this project that a file imports."""
    return sorted(imports(name) & FILES.keys())


@cache
def level(name: str) -> int:
    """1 for a file that imports no other, else one more than the highest of those it imports."""
    return 1 + max(map(level, inner(name)), default=0)


def room(name: str) -> str | None:
    """The room of a file; None for the files that stand in none."""
    parts = name.split(".")
    return parts[1] if parts[0] == "moejax" and len(parts) > 1 and parts[1] in FLOOR else None


def test_few_entries_at_the_top_all_of_them_known():
    entries = {path.stem for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    rooms = {entry for entry in entries if not entry.startswith("__")}
    assert rooms == set(FLOOR)
    assert len(rooms) <= ENTRIES


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_room_imports_only_from_rooms_below(name):
    own = room(name)
    for other in filter(None, map(room, inner(name))):
        below = own is None or FLOOR[other] <= FLOOR[own]
        assert below, f"{name} imports from {other}, which lies above {own}"


def test_no_file_imports_from_above_and_there_are_few_levels():
    """A circle of imports would have no levels: Python's recursion limit says so."""
    highest = max(FILES, key=level)
    chain = [highest]
    while inner(chain[-1]):
        chain.append(max(inner(chain[-1]), key=level))
    assert level(highest) <= LEVELS, " > ".join(chain)


@pytest.mark.parametrize("name", [n for n in sorted(FILES) if room(n) in WITHOUT_LINEN])
def test_ideas_are_free_of_flax(name):
    uses = any(module.split(".")[0] == "flax" for module in imports(name))
    assert uses == (FILES[name] in WITH_LINEN)
