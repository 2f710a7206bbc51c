"""Conversations made of the docstrings of a standard library of two files."""

import json
from pathlib import Path

import pytest

from moejax.config import Config, ConfigError, DataConfig
from moejax.config.data import DOCSTRINGS
from moejax.data import stdlib_corpus
from moejax.data.chat import docstrings
from moejax.data.chat.choose import place_docstrings
from moejax.data.chat.docstrings import find_answer, write_docstrings
from moejax.data.pipeline import validation_batches
from moejax.data.seen import list_rows
from moejax.data.sources import open_documents
from moejax.data.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
MODULE = '''\
"""Tools for the sea.

More of them."""
class Boat:
    """A thing that floats.  It may
    sink."""
    async def sail(self):
        "Sail away from here"
        def inner():
            "Nobody can ask about this."
    def _hidden(self):
        "Nobody can ask about this."
    def row(self): pass
def swim(far): r"""swim(far) -> bool"""
'''


@pytest.fixture
def library(tmp_path, monkeypatch):
    """``find_library`` gives a folder with files on both sides, and with some that say nothing."""
    root = tmp_path / "lib"
    root.mkdir()
    side = {}
    for number in range(200):
        file = stdlib_corpus.LibraryFile(path=f"m{number}.py", size=1)
        side.setdefault(file.split, file.path)
    (root / side["train"]).write_text(MODULE)
    (root / side["validation"]).write_text('"""Another module, held out."""\n')
    for name, text in (("_own.py", MODULE), ("bad.py", "def"), ("raw.py", "# \0")):
        (root / name).write_text(text)
    (root / "sea").mkdir()
    (root / "sea" / "__init__.py").write_text('"""A package of the sea."""')
    for place in (stdlib_corpus, docstrings):
        monkeypatch.setattr(place, "find_library", lambda: root)
    return {split: name.removesuffix(".py") for split, name in side.items()}


def test_questions_are_about_what_is_public_and_says_what_it_is(library, tmp_path):
    files = write_docstrings(str(tmp_path / "kept"))
    texts = {split: Path(file).read_text() for split, file in files.items()}
    talks = {split: list(map(json.loads, text.splitlines())) for split, text in texts.items()}
    said = {
        split: {one["messages"][0]["content"]: one["messages"][1]["content"] for one in talk}
        for split, talk in talks.items()
    }
    name = library["train"]
    assert said["train"] == {
        f"What is the module {name} for?": "Tools for the sea.",
        f"What is {name}.Boat?": "A thing that floats. It may sink.",
        f"What does {name}.Boat.sail do?": "Sail away from here.",
        "What is the module sea for?": "A package of the sea.",
    }
    assert said["validation"] == {
        f"What is the module {library['validation']} for?": "Another module, held out."
    }
    assert [one["role"] for one in talks["train"][0]["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("docstring", "answer"),
    [
        ("Return it. Else None.", "Return it. Else None."),
        ("Return the value", "Return the value."),
        ("See e.g. this one. " + "Long" * 50 + ".", "See e.g. this one."),
        ("Return the value of v1.2 as is!", "Return the value of v1.2 as is!"),
        ("Long" * 50 + ".", None),
        ("Yes.", None),
        ("", None),
        ("  \n", None),
        ("join(a, b) -> c", None),
        ("**DEPRECATED**", None),
        ("Usage: run it this way.", None),
        ("Return one of these:", None),
    ],
)
def test_an_answer_is_made_of_whole_sentences(docstring, answer):
    assert find_answer(docstring) == answer


def test_they_are_written_once_and_read_as_conversations(library, tmp_path, monkeypatch):
    config = DataConfig(
        train=DOCSTRINGS,
        chat_template="plain",
        directory=str(tmp_path / "kept"),
        sequence_length=96,
        eval_batch_size=1,
    )
    corpus = open_documents(config, BYTES)
    assert "stdlib:docstrings (" in corpus.description
    assert "4 documents to train on, 1 document held out" in corpus.description
    (batch, *_) = validation_batches(corpus.validation, BYTES, config, batch_size=1)
    ((row,),) = [list(list_rows(batch, BYTES))]
    assert [part.text for part in row.texts[0] if part.learned] == [
        "Another module, held out.<|endoftext|>"
    ]
    monkeypatch.setattr(docstrings, "read_talks", None)
    assert len(open_documents(config, BYTES).train) == 4


def test_they_go_with_files_of_ones_own(library, tmp_path):
    own, kept = str(tmp_path / "own.jsonl"), str(tmp_path / "kept")
    both = DataConfig(train=(own, DOCSTRINGS), chat_template="plain", directory=kept)
    placed = place_docstrings(both)
    assert placed.train[0] == own and placed.train[1].endswith("/train.jsonl")
    assert placed.validation is None
    held_out = DataConfig(train=own, validation=DOCSTRINGS, chat_template="plain", directory=kept)
    assert place_docstrings(held_out).validation.endswith("/validation.jsonl")
    assert place_docstrings(Config().data) == Config().data


def test_what_is_refused(library, tmp_path):
    kept = str(tmp_path / "kept")
    with pytest.raises(ConfigError, match="has no field `text`.*give --data.chat-template"):
        open_documents(DataConfig(train=DOCSTRINGS, directory=kept), BYTES)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--data.directory: .* cannot be written to"):
        write_docstrings(str(tmp_path / "file"))
