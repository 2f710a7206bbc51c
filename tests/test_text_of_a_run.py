"""A run goes on with the very text it began with, and text without tokens never reaches XLA."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
from test_run import config, metrics, quick, with_run  # noqa: F401
from tokenizers import Tokenizer, models, pre_tokenizers

from moejax.config import Config, ConfigError
from moejax.config.errors import RunError
from moejax.data.pipeline import train_batches
from moejax.data.tokenizer import ByteTokenizer, load_tokenizer
from moejax.runs import checkpoint


def with_data(config: Config, **changes) -> Config:  # noqa: F811
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def change_a_byte(folder: Path) -> None:
    data = bytearray((folder / "a.txt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "a.txt").write_bytes(data)


def lengthen(folder: Path) -> None:
    (folder / "a.txt").write_bytes((folder / "a.txt").read_bytes() + b"\n")


def swap(folder: Path) -> None:
    data = [(folder / name).read_bytes() for name in ("a.txt", "b.txt")]
    for name, text in zip(("b.txt", "a.txt"), data, strict=True):
        (folder / name).write_bytes(text)


CHANGES = {
    "a byte": (change_a_byte, "changed: a.txt"),
    "one byte longer": (lengthen, "changed: a.txt"),
    "renamed": (lambda f: (f / "a.txt").rename(f / "aa.txt"), "gone: a.txt; new: aa.txt"),
    "swapped": (swap, "changed: a.txt, b.txt"),
    "held out": (lambda f: (f / "held_out").write_bytes(b"?" * 500), "changed: held_out"),
}


@pytest.mark.slow
def test_a_text_that_has_changed_is_refused_by_name(config, tmp_path):  # noqa: F811
    config = with_run(config, steps=3, eval_every=3, sample_tokens=0)  # noqa: F811
    quick(config)
    lines = metrics(config.run.directory)
    kept = {f: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()}
    for name, (change, words) in CHANGES.items():
        change(tmp_path)
        with pytest.raises(RunError, match=rf"run was trained on .*{words}") as error:
            quick(config)
        assert "Give it the same data" in str(error.value), name
        for file in [f for f in tmp_path.iterdir() if f.is_file()]:
            file.unlink()
        for file, data in kept.items():
            file.write_bytes(data)
    quick(config)
    assert metrics(config.run.directory) == lines


@pytest.mark.slow
def test_a_run_without_a_fingerprint_goes_on(config, tmp_path, monkeypatch):  # noqa: F811
    """As those of older versions: their text is compared by its description."""
    config = with_run(config, steps=3, eval_every=3, sample_tokens=0)  # noqa: F811
    save = checkpoint.Checkpoints.save

    def save_as_before(self, step, state, extra, score=None):
        save(self, step, state, {k: v for k, v in extra.items() if k != "marks"}, score)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", save_as_before)
        quick(config)
    saved = json.loads(next(Path(config.run.directory).rglob("checkpoints/3/extra/*")).read_text())
    assert "marks" not in saved
    change_a_byte(tmp_path)
    quick(config, steps=6)
    assert metrics(config.run.directory)[-1]["step"] == 6


@pytest.fixture
def words_tokenizer(tmp_path) -> str:
    """A tokenizer to which white space is nothing."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1, "</s>": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


BLANK = {
    "all blank": ({"a": b"\n\n", "b": b"  ", "held_out": b"word"}, {}, "the training text gives"),
    "a mark alone": (
        {"a": b"\xef\xbb\xbf", "b": b"\xef\xbb\xbf\n", "held_out": b"word"},
        {},
        "the training text gives no token",
    ),
    "one of two streams": (
        {"a": b"word " * 99, "b": b"\n" * 99, "held_out": b"word"},
        {"shards": 2},
        r"the training text of stream 1 of --data.shards 2 .* gives no token",
    ),
    "held out": ({"a": b"word", "b": b"word", "held_out": b"\n"}, {}, "the held-out text gives no"),
    "a large one": (
        {"a": b" " * 5_000_000, "b": b"\n" * 5_000_000, "held_out": b"word"},
        {},
        "the training text gives no token",
    ),
}


@pytest.mark.parametrize("kind", BLANK)
def test_text_without_tokens_is_refused_before_compiling(
    config,  # noqa: F811
    tmp_path,
    words_tokenizer,
    kind,
    capsys,
):
    texts, settings, words = BLANK[kind]
    for name, text in texts.items():
        (tmp_path / (name if name == "held_out" else f"{name}.txt")).write_bytes(text)
    config = with_data(config, tokenizer=words_tokenizer, **settings)  # noqa: F811
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"^{words}"):
        quick(config)
    assert time.monotonic() - began < 10
    assert "compiling" not in capsys.readouterr().out


class Counting:
    """Documents that remember which of them were read."""

    def __init__(self, texts: list[bytes]) -> None:
        self.texts, self.read = texts, []

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> bytes:
        self.read.append(index)
        return self.texts[index]


def test_few_documents_are_read_to_find_a_token(config, words_tokenizer):  # noqa: F811
    """Up to the first that has one; and a token far from the beginning is found, too."""
    texts = [b" ", b"word", b" " * 100_000 + b"word"] + [b"word"] * 997
    source = Counting(texts)
    data = dataclasses.replace(config.data, shards=2, batch_size=8)
    stream = train_batches(source, load_tokenizer(words_tokenizer), data, batch_size=8)
    assert source.read[:3] == [0, 2, 1]  # what follows, the stream reads
    assert np.any(next(stream)["segments"])
    stream.close()
    with pytest.raises(ConfigError, match="gives no token"):
        train_batches(Counting([b"", b""]), ByteTokenizer(), data, batch_size=8)
