"""Tokens that are made once and kept: the same batches, whole or not at all."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moejax.config import ConfigError, DataConfig
from moejax.data import token_cache, token_shards
from moejax.data.documents import Encoded
from moejax.data.pipeline import train_batches, validation_batches
from moejax.data.sources import open_documents
from moejax.data.token_cache import cache_tokens, is_cached
from moejax.data.token_shards import Shards, StoredTokens, write_shard
from moejax.data.tokenizer import ByteTokenizer, load_tokenizer

TEXTS = [f"Text {n}: " + "grüße und\n wörter " * (n * 7 % 50) for n in range(200)]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A small tokenizer whose normaliser drops spaces, so that a token may stand for many bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace("~", "")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend.save(str(path))
    return str(path)


def make_config(folder, tokenizer_file, **changes) -> DataConfig:
    path = folder / "a.jsonl"
    if not path.exists():
        texts = [*TEXTS, "~" * 70_000 + "end", "a" + "~" * 300, ""]
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return DataConfig(
        train=str(path),
        tokenizer=tokenizer_file,
        directory=str(folder / "kept"),
        sequence_length=16,
        batch_size=2,
        shuffle_window=32,
        **changes,
    )


def open_both(config):
    tokenizer = load_tokenizer(config.tokenizer)
    corpus = open_documents(config, tokenizer)
    return corpus, cache_tokens(corpus, tokenizer, config, corpus.take_marks()), tokenizer


def read_folder(folder) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_batches_are_those_of_the_text(tmp_path, tokenizer_file):
    config = make_config(tmp_path, tokenizer_file)
    corpus, tokens, tokenizer = open_both(config)
    assert isinstance(tokens.train, StoredTokens) and len(tokens.train) == len(corpus.train)
    for side in ("train", "validation"):
        texts, stored = getattr(corpus, side), getattr(tokens, side)
        for i in range(len(texts)):
            for one, other in zip(stored[i], tokenizer.encode(texts[i]), strict=True):
                np.testing.assert_array_equal(one, other)
                assert one.dtype == np.int32
    streams = [train_batches(c.train, tokenizer, config, batch_size=2) for c in (corpus, tokens)]
    for _ in range(3):
        one, other = map(next, streams)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert streams[0].get_state() == streams[1].get_state()  # either goes on where the other was
    for stream in streams:
        stream.close()
    held = [validation_batches(c.validation, tokenizer, config, batch_size=2)
            for c in (corpus, tokens)]  # fmt: skip
    for one, other in zip(*held, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_tokens_are_made_once_and_what_was_killed_goes_on(tmp_path, tokenizer_file, monkeypatch):
    config = make_config(tmp_path, tokenizer_file)
    open_both(config)
    kept = tmp_path / "kept" / "tokens"
    whole = read_folder(kept)
    assert len([name for name in whole if name.endswith("about.json")]) == 2
    made = []
    monkeypatch.setattr(token_cache, "write_shard", lambda *args: made.append(args))
    open_both(config)
    assert made == []  # nothing is made again
    monkeypatch.undo()
    # As kill -9 leaves it: no end, some shards whole, one begun.
    folder = next(kept.glob("*/about.json")).parent
    (folder / "about.json").unlink()
    for number in (1, 5):
        (folder / f"{number:08}").rename(folder / f"{number:08}.123.making")
    (folder / "00000005.123.making" / "ends").unlink()
    open_both(config)
    assert read_folder(kept) == whole


def test_tokens_belong_to_text_and_tokenizer(tmp_path, tokenizer_file):
    config = make_config(tmp_path, tokenizer_file)
    open_both(config)
    kept = tmp_path / "kept" / "tokens"
    assert len(list(kept.iterdir())) == 4  # two sides, with their locks
    open_both(replace(config, seed=3, shuffle_window=8, sequence_length=64, shards=2))
    assert len(list(kept.iterdir())) == 4
    path = tmp_path / "a.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Text 7:", b"Text X:"))
    _, tokens, tokenizer = open_both(config)
    texts = {tokenizer.decode(tokens.train[i].ids)[:7] for i in range(40)}
    assert "Text X:" in texts and "Text 7:" not in texts
    other = tmp_path / "tokenizer.json"
    data = json.loads(Path(tokenizer_file).read_text(encoding="utf-8"))
    data["normalizer"] = None
    other.write_text(json.dumps(data))
    before = len(list(kept.iterdir()))
    open_both(replace(config, tokenizer=str(other)))
    assert len(list(kept.iterdir())) == before + 4


def test_whose_tokens_are_kept(tmp_path, tokenizer_file):
    own, raw = load_tokenizer(tokenizer_file), ByteTokenizer()
    files = DataConfig(source="files", files="x")
    for config, tokenizer, kept in (
        (DataConfig(train="x"), own, True),
        (DataConfig(train="x"), raw, False),
        (DataConfig(train="x", token_cache="never"), own, False),
        (files, own, False),
        (replace(files, token_cache="always"), own, True),
    ):
        assert is_cached(config, tokenizer) == kept
    np.save(tmp_path / "x.npy", np.ones(9, np.uint16))
    corpus = open_documents(DataConfig(train=str(tmp_path / "x.npy")), own)
    assert cache_tokens(corpus, own, DataConfig(train="x"), []) is corpus  # tokens already


def test_shards_do_not_depend_on_who_makes_them(tmp_path):
    for count, size, shards in ((1, 1, 1), (256, 1, 256), (257, 2, 129), (2_000_000, 4096, 489)):
        one = Shards(folder=tmp_path, documents=count, wide=False)
        assert (one.size, one.count) == (size, shards)
        numbers = [list(one.numbers(n)) for n in range(one.count)]
        assert list(itertools.chain(*numbers)) == list(range(count))


def test_a_shard_that_is_there_already_stays(tmp_path):
    """Another process, whose parent was killed, may have been faster."""
    shards = Shards(folder=tmp_path, documents=1, wide=True)
    write_shard(shards, 0, [b"abc"], ByteTokenizer())
    before = read_folder(tmp_path)
    write_shard(shards, 0, [b"abc"], ByteTokenizer())
    assert read_folder(tmp_path) == before and shards.is_whole(0)
    found = StoredTokens(shards)[0]
    assert isinstance(found, Encoded) and found.ids.tolist() == [97, 98, 99]


def test_a_document_that_cannot_be_read_ends_it(tmp_path, tokenizer_file, monkeypatch):
    config = make_config(tmp_path, tokenizer_file)
    tokenizer = load_tokenizer(tokenizer_file)
    corpus = open_documents(config, tokenizer)
    marks = corpus.take_marks()
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"a\.jsonl has changed since it was first looked at"):
        cache_tokens(corpus, tokenizer, config, marks)


@pytest.fixture
def several_processes(monkeypatch):
    """As where there are CPUs enough."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


@pytest.mark.slow
def test_processes_make_the_same_tokens_and_say_what_is_wrong(
    tmp_path, tokenizer_file, several_processes, monkeypatch
):
    config = make_config(tmp_path, tokenizer_file)
    corpus, _, tokenizer = open_both(config)
    kept = tmp_path / "kept" / "tokens"
    whole = read_folder(kept)
    for name in [name for name in whole if name.endswith("about.json")]:
        (kept / name).unlink()
    marks = corpus.take_marks()
    monkeypatch.setattr(token_cache, "_ALONE", 0)
    for folder in kept.glob("*/0*"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    cache_tokens(corpus, tokenizer, config, marks)
    assert read_folder(kept) == whole
    (tmp_path / "a.jsonl").write_text("{}")
    elsewhere = replace(config, directory=str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match=r"a\.jsonl has changed since it was first looked at"):
        cache_tokens(corpus, tokenizer, elsewhere, marks)


KILLED = """
import sys, time
from moejax.data import token_shards
write = token_shards.write_shard
def slowly(*args):
    time.sleep(0.05)
    write(*args)
from moejax.data import token_cache
token_cache.write_shard = slowly
token_cache._ALONE = 10**6
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_token_cache import make_config, open_both
open_both(make_config(Path({place!r}), {tokenizer!r}))
"""


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_next_one_uses(tmp_path, tokenizer_file):
    names = {
        "tests": str(Path(__file__).parent),
        "place": str(tmp_path),
        "tokenizer": tokenizer_file,
    }
    make_config(tmp_path, tokenizer_file)
    command = [sys.executable, "-c", KILLED.format(**names)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment) as process:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "kept" / "tokens").glob("*/*/ends"))) < 5:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    killed = read_folder(tmp_path / "kept" / "tokens")
    assert not [name for name in killed if name.endswith("about.json")]
    open_both(make_config(tmp_path, tokenizer_file))
    resumed = read_folder(tmp_path / "kept" / "tokens")
    for name, data in killed.items():
        assert resumed.get(name, data) == data
    # All at once, elsewhere.
    config = replace(make_config(tmp_path, tokenizer_file), directory=str(tmp_path / "other"))
    open_both(config)
    assert read_folder(tmp_path / "other" / "tokens") == resumed
    assert token_shards.MOST_SHARDS > 5
