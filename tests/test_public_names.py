"""The names that users import from moejax itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import moejax

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", moejax.__all__)
def test_every_public_name_is_there(name):
    value = getattr(moejax, name)
    assert value is not None and name in dir(moejax)
    assert getattr(moejax, name) is value


def test_type_checkers_see_the_same_names():
    """The stub imports the names of the table, from the same files."""
    tree = ast.parse((ROOT / "moejax/__init__.pyi").read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module + f":{alias.name}" * (alias.name != alias.asname)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == moejax._HOMES
    assert sorted(seen) == moejax.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'wings'"):
        moejax.wings  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, moejax; print(*(m for m in ('jax', 'numpy', 'flax') if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
