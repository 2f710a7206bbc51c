"""Questions about the standard library of the running Python, answered by its docstrings: a small
set of conversations on every machine.

The text of its modules is read, and nothing is imported. A public module, class, function or method
whose docstring begins with whole sentences gives one conversation; those of files that are held out
of the standard library as a corpus are held out here, too.
"""

import ast
import hashlib
import json
import platform
import re
import warnings
from collections.abc import Iterator

from moejax.config.errors import ConfigError
from moejax.data.kept import DONE, find_kept, hold
from moejax.data.stdlib_corpus import LibraryFile, find_library, list_library_files
from moejax.runtime.atomic_files import write_json, write_text

_VERSION = 1
"""Of what is written: another one is written anew."""
SHORTEST, LONGEST = 12, 160
"""Characters of an answer."""
QUESTIONS = {
    "module": "What is the module {} for?",
    "class": "What is {}?",
    "function": "What does {} do?",
}
_SENTENCE = re.compile(r".*?[.!?](?=\s+[A-Z]|$)")
_NO_SENTENCE = re.compile(r"\w*\(|\W|\w+ *(->|--|:)|Deprecated|Internal|Override")
"""How docstrings begin that say how something is called, or not what it is."""

Talk = dict[str, list[dict[str, str]]]


def write_docstrings(directory: str | None) -> dict[str, str]:
    """The files (JSON lines) of the conversations to train on, ``train``, and of those held out,
    ``validation``, written to ``directory`` (``--data.directory``) unless they are there already.
    Raises ``ConfigError`` if they cannot be written.
    """
    files = list_library_files(find_library())
    listing = "\n".join(f"{file.path} {file.size}" for file in files)
    digest = hashlib.sha256(f"{_VERSION}\n{listing}".encode()).hexdigest()[:8]
    folder = find_kept(directory) / "docstrings" / f"{platform.python_version()}-{digest}"
    paths = {split: folder / f"{split}.jsonl" for split in ("train", "validation")}
    try:
        with hold(folder):
            if not (folder / DONE).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                counts = {}
                for split, path in paths.items():
                    talks = [one for f in files if f.split == split for one in read_talks(f)]
                    write_text(path, "".join(f"{json.dumps(one)}\n" for one in talks))
                    counts[split] = len(talks)
                write_json(folder / DONE, counts)
    except OSError as error:
        raise ConfigError(
            f"--data.directory: the conversations made of docstrings cannot be written to {folder}:"
            f" {error.strerror or error}."
        ) from error
    return {split: str(path) for split, path in paths.items()}


def read_talks(file: LibraryFile) -> Iterator[Talk]:
    """The conversations about what is in a file."""
    words = file.path.removesuffix(".py").removesuffix("/__init__").split("/")
    if any(word.startswith("_") for word in words):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old string escapes
        try:
            module = ast.parse((find_library() / file.path).read_bytes())
        except (SyntaxError, ValueError):  # bytes that are no text, say
            return
    name = ".".join(words)
    for kind, full_name, docstring in [("module", name, ast.get_docstring(module))] + [
        *_list_docstrings(module, name)
    ]:
        answer = find_answer(docstring or "")
        if answer is not None:
            question = QUESTIONS[kind].format(full_name)
            said = zip(("user", "assistant"), (question, answer), strict=True)
            yield {"messages": [{"role": role, "content": text} for role, text in said]}


def _list_docstrings(
    node: ast.Module | ast.ClassDef, name: str
) -> Iterator[tuple[str, str, str | None]]:
    """What each public function and class in ``node`` is, its name, and its docstring."""
    for one in node.body:
        if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if one.name.startswith("_"):
            continue
        full_name, is_class = f"{name}.{one.name}", isinstance(one, ast.ClassDef)
        yield "class" if is_class else "function", full_name, ast.get_docstring(one)
        if isinstance(one, ast.ClassDef):
            yield from _list_docstrings(one, full_name)


def find_answer(docstring: str) -> str | None:
    """The first sentences of a docstring, as many as are short enough together, in one line; None
    if it begins otherwise.
    """
    text = " ".join(docstring.strip().split("\n\n")[0].split())
    if not text or _NO_SENTENCE.match(text):
        return None
    text += "" if text[-1] in ".!?:;," else "."
    answer = ""
    for sentence in _SENTENCE.finditer(text):
        longer = f"{answer} {sentence[0].strip()}".strip()
        if len(longer) > LONGEST:
            break
        answer = longer
    return answer if len(answer) >= SHORTEST else None
