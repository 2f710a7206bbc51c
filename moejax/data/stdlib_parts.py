"""Python modules in two parts: their docstrings, and their code without them."""

import ast
from collections.abc import Iterator

from moejax.data.documents import Documents, find_path

_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class ModuleParts:
    """Of each module (Python source as bytes) the ``code`` or the ``prose``, taken when it is
    asked for.
    """

    def __init__(self, modules: Documents, part: str) -> None:
        self._modules, self._part = modules, part

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int) -> bytes:
        module = self._modules[index]
        assert isinstance(module, bytes)
        return split_module(module)[self._part]

    def path(self, index: int) -> str | None:
        """The path of the file that a document was."""
        return find_path(self._modules, index)


def split_module(source: bytes) -> dict[str, bytes]:
    """``prose``: the docstrings of a module, in order, with an empty line between; ``code``: all
    else, with ``pass`` where nothing else stands in a body. What is no Python is code.
    """
    try:
        source.decode("utf-8")  # by which Python counts columns
        tree = ast.parse(source)
    except (ValueError, SyntaxError):
        return {"code": source, "prose": b""}
    texts, code = [], []
    lines = source.splitlines(keepends=True)
    at = (0, 0)
    for place, only, text in _find_docstrings(tree):
        texts.append(text)
        begin, end = (place.lineno - 1, place.col_offset), (place.end_lineno, place.end_col_offset)
        assert end[0] is not None and end[1] is not None  # as of all that is parsed
        stop = (end[0] - 1, end[1])
        before, after = lines[begin[0]][: begin[1]], lines[stop[0]][stop[1] :]
        if only:
            code += [_cut(lines, at, begin), b"pass"]
        elif not before.strip() and not after.strip():  # its lines are its own
            begin, stop = (begin[0], 0), (stop[0] + 1, 0)
            code.append(_cut(lines, at, begin))
        else:
            code.append(_cut(lines, at, begin))
        at = stop
    code.append(_cut(lines, at, (len(lines), 0)))
    return {"code": b"".join(code), "prose": b"\n\n".join(texts)}


def _find_docstrings(tree: ast.Module) -> Iterator[tuple[ast.Expr, bool, bytes]]:
    """Each docstring in order: its statement, whether it is alone in its body, and its text."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            place = node.body[0]
            assert isinstance(place, ast.Expr)
            alone = len(node.body) == 1 and not isinstance(node, ast.Module)
            found.append((place, alone, text.encode("utf-8", "replace")))
    yield from sorted(found, key=lambda one: (one[0].lineno, one[0].col_offset))


def _cut(lines: list[bytes], begin: tuple[int, int], end: tuple[int, int]) -> bytes:
    """What stands from one place (line, column) to another."""
    if begin[0] == end[0]:
        return lines[begin[0]][begin[1] : end[1]] if begin[0] < len(lines) else b""
    last = lines[end[0]][: end[1]] if end[0] < len(lines) else b""
    first = lines[begin[0]][begin[1] :] if begin[0] < len(lines) else b""
    return b"".join([first, *lines[begin[0] + 1 : end[0]], last])
