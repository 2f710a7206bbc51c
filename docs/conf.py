"""How the documentation is built: python -m sphinx -W --keep-going -b html docs docs/_build/html"""

import ast
import shutil
from pathlib import Path

import moejax

HERE = Path(__file__).parent

project = "moejax"
author = "the authors of moejax"
copyright = author
version = release = moejax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "moejax"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
highlight_language = "text"
smartquotes = False  # `--flag` has two dashes

# Links to headings, checked; external links are never fetched.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "dollarmath"]

# The lesson: tests/test_notebooks.py runs it, and the pages show it as it is in git, without
# outputs. `-D nb_execution_mode=force` runs it here, too.
nb_execution_mode = "off"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
lesson = (HERE.parent / "notebooks/moe_from_scratch.ipynb").read_text(encoding="utf-8")
(HERE / "lesson.ipynb").write_text(lesson.replace("../README.md", "index.md"), encoding="utf-8")

# Every file of the package with the first line of its docstring, room by room.
page = ["# Every file", "", "What each file is for, by the first line of its docstring.", ""]
room = None
for file in sorted((HERE.parent / "moejax").rglob("*.py"), key=lambda f: (f.parent, f.name)):
    lines = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    if file.parent != room:
        room = file.parent
        page += ["", f"## `{room.relative_to(HERE.parent)}/`", "", "| file | |", "|---|---|"]
    page += [f"| `{file.name}` | {' '.join(lines.split()).replace('``', '`')} |"]
(HERE / "files.md").write_text("\n".join(page) + "\n", encoding="utf-8")

# The reference: every public name of these rooms, in the order of the source.
shutil.rmtree(HERE / "api", ignore_errors=True)  # pages of files that have moved
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
default_role = "code"  # in docstrings, `--model.moe.top-k` is something to type
