"""The house: a file imports only from the floors below it, or from its own package."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "moejax"

FLOORS = {
    "__init__": 0,
    "allocator": 0,
    "errors": 0,
    "products": 0,
    "routing": 0.2,  # it raises the errors
    "config": 0.5,  # it has the names of the routers
    "mesh": 0.7,  # it checks the config
    "targets": 0.7,
    "command_line": 1,
    "sampling": 1,
    "balance": 1,
    "selection_bias": 1,
    "experts": 1,
    "data": 1,
    "kernels": 1.5,  # they loop over experts
    "dispatch": 2,
    "layer": 4,
    "models": 5,
    "conditions": 6.5,  # of what the plan counts
    "plan": 6.2,  # it reads config.json and runs
    "generate": 6,
    "observe": 6,
    "hf": 6,
    "parallel": 3,
    "bench": 6.5,  # it draws with what observe has
    "train": 7,
    "inference": 8,
    "specialisation": 8.5,  # its model is opened as for inference
    "study": 8,
    "conversion": 8,
    "cli": 9,
    "__main__": 10,
}
WITHOUT_LINEN = (
    "routing",
    "balance",
    "selection_bias",
    "experts",
    "kernels",
    "dispatch",
    "parallel",
)


def house_of(file: Path) -> str:
    """The package or module right below moejax that a file belongs to."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """All modules that a file imports, anywhere in it, by full name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(ROOT.rglob("*.py"))


def test_every_file_has_a_floor():
    assert {house_of(file) for file in FILES} == set(FLOORS)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_imports_only_from_below(file):
    own = house_of(file)
    for name in imports(file):
        parts = name.split(".")
        if parts[0] != "moejax" or len(parts) < 2:
            continue
        other = parts[1] if parts[1] in FLOORS else "__init__"
        assert other == own or FLOORS[other] < FLOORS[own], f"{own} imports {name} from above"


@pytest.mark.parametrize("house", WITHOUT_LINEN)
def test_ideas_are_free_of_flax(house):
    files = [file for file in FILES if house_of(file) == house]
    assert files
    for file in files:
        assert not any(name.split(".")[0] == "flax" for name in imports(file)), file
