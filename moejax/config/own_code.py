"""Where an error of the user's own code is: the file, the line and its text."""

import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from moejax.routing.routers import ROUTERS

FOLDER = "code"
"""In a run directory: a copy of the file that has the run's own router."""

_own: dict[Path, Path] = {}
_router_files: dict[str, Path] = {}


def note_file(path: Path) -> None:
    """Note a file of the user's that is about to be run."""
    _own[path.resolve()] = path


def note_routers(path: Path, before: Mapping[str, object]) -> None:
    """Note which routers a file has added to those ``before``."""
    _router_files.update({n: path for n, router in ROUTERS.items() if router is not before.get(n)})


def find_router_file(name: str) -> Path | None:
    """The file that added the router of this name; None for those that come with moejax."""
    return _router_files.get(name)


def find_lines(error: BaseException) -> str:
    """The last lines of the user's own files that an error went through, each below its file; empty
    if it went through none.
    """
    folders = {path.parent for path in _own}
    lines = []
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename).resolve()
        beside = file.parent in folders and file.stem in sys.modules  # imported from beside it
        if file in _own or (beside and file.parent != Path(__file__).parents[2]):
            shown = _own.get(file, Path(frame.filename))
            lines.append(f"\n  {shown}, line {frame.lineno}, in {frame.name}\n    {frame.line}")
    return "".join(lines[-3:])


def describe_error(error: BaseException) -> str:
    """What went wrong in the user's own code, and where."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno})\n    {(error.text or '').strip()}"
    return f"{type(error).__name__}: {error}{find_lines(error)}"
