"""Every notebook runs from top to bottom as a reader would run it; none keeps what it printed."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSON = ROOT / "notebooks" / "moe_from_scratch.ipynb"
MOST_SECONDS = 180

every_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def read(file: Path) -> nbformat.NotebookNode:
    return nbformat.read(file, as_version=nbformat.NO_CONVERT)


def answers(notebook: nbformat.NotebookNode) -> list[str]:
    """The folded answers of a notebook's exercises."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.findall(r"<details><summary>Answer</summary>\n(.*?)</details>", text, re.S)


def environment(notebook: nbformat.NotebookNode, directory: Path) -> dict[str, str]:
    """That of the kernel: a notebook's metadata may add to it, at ``moejax.environment``."""
    ours = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),  # this moejax, wherever another one is installed
        "IPYTHONDIR": str(directory / "ipython"),
    }
    # XLA_FLAGS of these tests trade speed for quick compiling; the kernel knows its own plots.
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "MPLBACKEND")}
    return inherited | ours | notebook.metadata.get("moejax", {}).get("environment", {})


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs_without_errors_and_warnings_and_so_do_its_answers(file, tmp_path):
    # On a new machine matplotlib lists the fonts first, and says so on stderr.
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True)
    notebook = read(file)
    given = len(notebook.cells)
    for answer in answers(notebook):
        for code in re.findall(r"```python\n(.*?)```", answer, re.S):
            notebook.cells.append(nbformat.v4.new_code_cell(code))
    work = tmp_path / "work"
    work.mkdir()
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(work)}},
    )

    def run(cells: range) -> None:
        for index in cells:
            cell = notebook.cells[index]
            client.execute_cell(cell, index)  # raises what the cell raises
            warned = [o.text for o in cell.get("outputs", []) if o.get("name") == "stderr"]
            assert not warned, f"cell {cell.id!r} wrote to stderr:\n{''.join(warned)}"

    start = time.monotonic()
    with client.setup_kernel(env=environment(notebook, tmp_path)):
        run(range(given))
        seconds = time.monotonic() - start
        run(range(given, len(notebook.cells)))
    print(f"{file.name}: {seconds:.0f} s")
    assert seconds < MOST_SECONDS


@every_notebook
def test_a_notebook_is_kept_without_outputs(file):
    notebook = read(file)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert cell.get("execution_count") is None and not cell.get("outputs"), cell.id


def test_every_exercise_of_the_lesson_has_an_answer():
    lesson = read(LESSON)
    exercises = [cell for cell in lesson.cells if "**Exercise" in cell.source]
    numbers = [int(re.search(r"\*\*Exercise (\d+)\.\*\*", c.source)[1]) for c in exercises]
    assert numbers == list(range(1, len(exercises) + 1)) and len(exercises) >= 5
    for cell in exercises:
        assert cell.source.count("**Exercise") == 1
        (answer,) = answers(nbformat.v4.new_notebook(cells=[cell]))
        assert len(answer.split()) > 20, cell.id
