"""Long texts in parts: the same tokens, and memory for one part."""

import io
import json
import random
import tracemalloc

import numpy as np
import pytest

from moejax.config import DataConfig
from moejax.data import long_texts, text_parts
from moejax.data.long_texts import encode_in_stretches
from moejax.data.sources import open_documents
from moejax.data.text_parts import find_parts, open_texts, read_parts
from moejax.data.token_shards import Shards, StoredTokens, write_shard
from moejax.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer

PIECES = ["a", "word ", "grüße ", "日本", "🎉", "\n", "\n\n", "  ", "<|end|>", "e\u0301", "\t1234"]


def random_text(size: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(PIECES, k=size))


def make_tokenizer(folder, kind: str) -> HuggingFaceTokenizer:
    """``bytes``: GPT-2's kind; ``composed``: after Unicode's NFC, with a token beside the merges;
    ``words``: SentencePiece's kind, with a space put before a text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.trainers import BpeTrainer

    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|end|>"]
    if kind == "words":
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        alphabet, special = [], ["<unk>", "<|end|>", *(f"<0x{i:02X}>" for i in range(256))]
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator([random_text(3000, 1)], trainer)
    if kind == "composed":
        backend.normalizer = normalizers.NFC()
        backend.add_tokens([AddedToken("é1", normalized=False)])
    path = folder / f"{kind}.json"
    backend.save(str(path))
    return HuggingFaceTokenizer(path)


TEXTS = [
    *(random_text(size, size) for size in (1, 2, 30, 500)),
    "é1 é é",
    " \n \t ",
    "<|end|>",
]


@pytest.mark.parametrize(("kind", "by_table"), [("bytes", 1), ("composed", 1), ("words", 0)])
def test_bytes_of_tokens_by_the_table_are_those_by_their_places(tmp_path, kind, by_table):
    tokenizer = make_tokenizer(tmp_path, kind)
    used = 0
    cut = "grüße 🎉".encode()
    for text in [*map(str.encode, TEXTS), *(cut[:n] for n in range(1, len(cut))), b"\xff\xfe", b""]:
        found = tokenizer._encode_by_table(text)
        used += found is not None
        for one, other in zip(found or (), tokenizer._encode_by_places(text)):  # noqa: B905
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype == np.int32
        ids, counts = tokenizer.encode(text)
        assert counts.sum() == len(text) and (len(ids) > 0) == bool(text)
    assert bool(used) == bool(by_table) and (not used or used >= 5)


def test_a_tokenizer_whose_tokens_do_not_tell_their_bytes_has_no_table(tmp_path):
    make_tokenizer(tmp_path, "bytes")
    data = json.loads((tmp_path / "bytes.json").read_text(encoding="utf-8"))
    place = dict.fromkeys(("single_word", "normalized", "special"), False) | {"id": 700}
    for change in (
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": data["pre_tokenizer"] | {"add_prefix_space": True}},
        {"pre_tokenizer": None},
        {"added_tokens": [place | {"content": "x y", "lstrip": True, "rstrip": False}]},
    ):
        (tmp_path / "other.json").write_text(json.dumps(data | change))
        tokenizer = HuggingFaceTokenizer(tmp_path / "other.json")
        assert tokenizer._encode_by_table(b"a word") is None
        assert tokenizer.encode(b"a word")[1].sum() == 6


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_a_text_in_stretches_has_the_tokens_of_the_whole(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(long_texts, "STRETCH", 700)
    monkeypatch.setattr(long_texts, "OVERLAP", 300)
    tokenizer = make_tokenizer(tmp_path, kind)
    for size in (150, 400, 3000):
        text = random_text(size, size).encode()
        longest = 0

        def encode(part):
            nonlocal longest
            longest = max(longest, len(part))
            part.decode()  # no character is cut
            return tokenizer._encode_stretch(part)

        for one, other in zip(
            encode_in_stretches(encode, text), tokenizer._encode_stretch(text), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        assert longest <= 703


def test_a_text_without_a_place_to_join_is_cut(monkeypatch):
    """Stretches that agree nowhere, and some without any token: no byte is lost."""
    monkeypatch.setattr(long_texts, "STRETCH", 100)
    monkeypatch.setattr(long_texts, "OVERLAP", 40)

    def encode(part):  # one token for each stretch, none for dots
        ids = np.asarray([len(part)] * (not part.startswith(b".")), np.int32)
        return ids, ids.copy()

    ids, counts = encode_in_stretches(encode, b"a" * 250 + b"." * 100)
    assert ids.tolist() == [100, 60, 60, 60] and counts.tolist() == [100, 60, 60, 130]


def test_parts_of_a_file_are_those_of_a_stream_and_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(text_parts, "LONGEST", 40)
    monkeypatch.setattr(text_parts, "PART", 16)
    monkeypatch.setattr(text_parts, "_REACH", 5)
    path = tmp_path / "x.txt"
    for seed in range(300):
        text = random_text(seed % 60, seed).replace("\n" * (seed % 3 == 0), "").encode()
        path.write_bytes(text)
        parts = [text[begin:end] for begin, end in find_parts(str(path), len(text))]
        assert parts == [*read_parts(io.BytesIO(text))] and b"".join(parts) == text
        assert (len(parts) == 1) == (len(text) <= 40)
        assert all(part.decode() and len(part) <= 21 for part in parts if len(parts) > 1)
        texts = open_texts([(str(path), len(text))])
        assert [texts[i] for i in range(len(texts))] == parts


def test_a_large_text_is_many_documents_packed_or_not(tmp_path, monkeypatch):
    import gzip

    monkeypatch.setattr(text_parts, "LONGEST", 2000)
    monkeypatch.setattr(text_parts, "PART", 500)
    monkeypatch.setattr(text_parts, "_REACH", 100)
    text = b"\xef\xbb\xbf" + random_text(9000, 5).encode()
    (tmp_path / "a.txt").write_bytes(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text))
    found = []
    for name in ("a.txt", "b.txt.gz"):
        config = DataConfig(train=str(tmp_path / name), directory=str(tmp_path / "kept"))
        corpus = open_documents(config)
        sides = [[side[i] for i in range(len(side))] for side in (corpus.train, corpus.validation)]
        found.append(sides)
    train, held = found[0]
    assert found[0] == found[1] and len(train) > 40 and len(held) > 2
    assert sum(map(len, train + held)) == len(text) - 3


def test_tokens_are_made_and_read_with_the_memory_of_one_document(tmp_path):
    """Whatever there is of them: Python's own memory, numpy's arrays included."""

    class Texts:
        def __len__(self):
            return 256 * count

        def __getitem__(self, index):
            return b"%08d" % index * 2**12

    peaks = []
    tracemalloc.start()
    for count in (4, 16):
        shards = Shards(folder=tmp_path / str(count), documents=256 * count, wide=False)
        tracemalloc.reset_peak()
        write_shard(shards, 0, Texts(), ByteTokenizer())
        tokens = StoredTokens(shards)
        for i in range(count):
            assert len(tokens[i].ids) == 2**15
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert max(peaks) < 20 * 2**15 and peaks[1] < 1.1 * peaks[0]
