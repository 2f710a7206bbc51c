"""Documents in every format: the same batches; and what is wrong in a file, by file and place."""

import bz2
import gzip
import io
import json
import lzma
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from moejax.config import Config, ConfigError, DataConfig, changed
from moejax.config.data import names_tfds
from moejax.data.hold_out import Side, hold_out
from moejax.data.kept import find_kept
from moejax.data.pipeline import train_batches, validation_batches
from moejax.data.sources import open_documents, open_text
from moejax.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer, encode_document

TOKENIZER = ByteTokenizer()
TEXTS = [
    *(f"Document {n}: " + "words and words\n" * (n % 7) + "." for n in range(57)),
    'a "quoted" \\ text,\r\nwith\ttabs',
    " Grüße, 世界 \U0001f600 ",
    "{not json}\n[1, 2",
]


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """What is prepared goes to a place of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "moejax"


def lines(texts=TEXTS) -> bytes:
    objects = [{"id": n, "meta": {"body": text}, "text": text} for n, text in enumerate(texts)]
    return b"".join(json.dumps(one, ensure_ascii=n % 2 == 0).encode() + b"\n"
                    for n, one in enumerate(objects))  # fmt: skip


def table(texts=TEXTS, kind=None):
    column = pa.array(texts, kind or pa.string())
    meta = pa.StructArray.from_arrays([column], names=["body"])
    return pa.table({"id": list(range(len(texts))), "text": column, "meta": meta})


def write_texts(folder: Path) -> str:
    for number, text in enumerate(TEXTS):
        (folder / f"{number:04}.txt").write_bytes(text.encode())
    return str(folder)


def write_packed_texts(folder: Path) -> str:
    for number, text in enumerate(TEXTS):
        (folder / f"{number:04}.md.gz").write_bytes(gzip.compress(text.encode()))
    return str(folder / "*.gz")


def write_lines(folder: Path, pack=lambda data: data, suffix="") -> str:
    (folder / f"a.jsonl{suffix}").write_bytes(pack(lines(TEXTS[:20]) + b"\n  \n"))
    (folder / f"b.jsonl{suffix}").write_bytes(pack(b"\xef\xbb\xbf" + lines(TEXTS[20:]).rstrip()))
    return str(folder / f"*.jsonl{suffix}")


def write_list(folder: Path, indent=None) -> str:
    objects = [{"text": text, "n": {"m": [1, 2.5, None]}} for text in TEXTS]
    (folder / "all.json").write_text(json.dumps(objects, indent=indent), encoding="utf-8")
    return str(folder / "all.json")


def write_parquet(folder: Path, kind=None) -> str:
    pa.parquet.write_table(table(TEXTS[:31], kind), folder / "0.parquet", row_group_size=7)
    pa.parquet.write_table(table(TEXTS[31:], kind), folder / "1.parquet", compression="zstd")
    return str(folder)


def write_arrow(folder: Path, stream=False, compression=None) -> str:
    path, data = folder / "x.arrow", table(TEXTS, pa.large_string())
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), data.schema, options=options) as writer:
        writer.write_table(data, max_chunksize=13)
    return str(path)


def write_feather(folder: Path) -> str:
    pa.feather.write_feather(table(), str(folder / "x.feather"))
    return str(folder / "x.feather")


def write_saved(folder: Path, texts=TEXTS) -> str:
    """As `datasets` writes it; the library itself is not needed."""
    names = []
    for number, part in enumerate((texts[:9], texts[9:])):
        names.append(f"data-{number:05}-of-00002.arrow")
        with pa.ipc.new_stream(str(folder / names[-1]), table().schema) as writer:
            writer.write_table(table(part), max_chunksize=5)
    state = {"_data_files": [{"filename": name} for name in names], "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return str(folder)


def tokens(texts=TEXTS, end=256) -> np.ndarray:
    return np.concatenate([[*text.encode(), end] for text in texts])


def write_npy(folder: Path) -> str:
    np.save(folder / "x.npy", tokens().astype(np.int64))
    return str(folder / "x.npy")


def write_bin(folder: Path) -> str:
    tokens().astype("<u2").tofile(folder / "x.bin")
    return str(folder / "x.bin")


def write_llm_c(folder: Path) -> str:
    ids = tokens()
    head = np.zeros(256, "<i4")
    head[:3] = 20240520, 1, len(ids)
    (folder / "x.bin").write_bytes(head.tobytes() + ids.astype("<u2").tobytes())
    return str(folder / "x.bin")


def write_megatron(folder: Path, type_code=4, kind="<i4") -> str:
    lengths = np.array([len(text.encode()) + 1 for text in TEXTS])
    head = b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + bytes([type_code])
    begins = np.append(0, np.cumsum(lengths)[:-1]) * np.dtype(kind).itemsize
    marks = np.arange(len(TEXTS) + 1)
    parts = [np.array([len(lengths), len(marks)], "<u8"), lengths.astype("<i4")]
    parts += [begins.astype("<i8"), marks.astype("<i8")]
    (folder / "x.idx").write_bytes(head + b"".join(part.tobytes() for part in parts))
    tokens().astype(kind).tofile(folder / "x.bin")
    return str(folder / "x.*")


def write_token_lines(folder: Path) -> str:
    rows = [json.dumps({"text": [256, *text.encode(), 256]}) for text in TEXTS]
    (folder / "x.jsonl").write_text("\n".join(rows))
    return str(folder / "x.jsonl")


def write_token_table(folder: Path) -> str:
    column = pa.array([list(text.encode()) for text in TEXTS], pa.list_(pa.uint16()))
    pa.parquet.write_table(pa.table({"text": column}), folder / "x.parquet")
    return str(folder / "x.parquet")


FORMATS = {
    "texts packed": write_packed_texts,
    "lines": write_lines,
    "lines gz": lambda folder: write_lines(folder, gzip.compress, ".gz"),
    "lines bz2": lambda folder: write_lines(folder, bz2.compress, ".bz2"),
    "lines xz": lambda folder: write_lines(folder, lzma.compress, ".xz"),
    "lines zst": lambda folder: write_lines(folder, zstandard.compress, ".zst"),
    "lines zst, frames": lambda folder: write_lines(
        folder, lambda data: zstandard.compress(data[:99]) + zstandard.compress(data[99:]), ".zst"
    ),
    "list": write_list,
    "list, written wide": lambda folder: write_list(folder, indent=4),
    "parquet": write_parquet,
    "parquet, words once": lambda folder: write_parquet(
        folder, pa.dictionary(pa.int32(), pa.string())
    ),
    "parquet, binary": lambda folder: write_parquet(folder, pa.binary()),
    "arrow": write_arrow,
    "arrow stream": lambda folder: write_arrow(folder, stream=True),
    "arrow packed": lambda folder: write_arrow(folder, compression="zstd"),
    "feather": write_feather,
    "saved by datasets": write_saved,
    "npy": write_npy,
    "bin": write_bin,
    "llm.c": write_llm_c,
    "megatron": write_megatron,
    "megatron, 2 bytes": lambda folder: write_megatron(folder, 8, "<u2"),
    "lines of tokens": write_token_lines,
    "table of tokens": write_token_table,
}


BATCHED = ("lines zst", "parquet", "arrow", "megatron")
"""Of which batches are made, too; all batches are made of nothing but the documents."""


def make_batches(config: DataConfig, count=4):
    """A few batches of each side."""
    corpus = open_documents(config, TOKENIZER)
    stream = train_batches(corpus.train, TOKENIZER, config, batch_size=config.batch_size)
    found = [next(stream) for _ in range(count)]
    stream.close()
    held = list(validation_batches(corpus.validation, TOKENIZER, config, batch_size=2))
    return found, held, stream.get_state()["layout"], corpus


def settings(given, **changes) -> DataConfig:
    changes = {"sequence_length": 32, "batch_size": 4, "shards": 2, "shuffle_window": 16} | changes
    return DataConfig(train=given, **changes)


def assert_same(one, other):
    for batches, others in zip(one[:2], other[:2], strict=True):
        for batch, expected in zip(batches, others, strict=True):
            assert batch.keys() == expected.keys()
            for name in batch:
                np.testing.assert_array_equal(batch[name], expected[name], err_msg=name)
    assert one[2] == other[2]  # the layout, on which resuming depends


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The batches of the texts in files of their own."""
    return make_batches(settings(write_texts(tmp_path_factory.mktemp("texts"))))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_batches(tmp_path, kind, expected):
    folder = tmp_path / "data"
    folder.mkdir()
    config = settings(FORMATS[kind](folder))
    for _ in range(2):  # the second time from what was prepared
        corpus = open_documents(config, TOKENIZER)
        for found, texts in (
            (corpus.train, expected[3].train),
            (corpus.validation, expected[3].validation),
        ):
            assert len(found) == len(texts)
            for i in range(len(texts)):
                ids, counts = encode_document(found[i], TOKENIZER)
                assert ids.astype(np.uint8).tobytes() == texts[i] and (counts == 1).all()
    if kind in BATCHED:
        assert_same(make_batches(config), expected)


def test_what_is_prepared_is_used_again_and_made_anew_when_the_file_changes(tmp_path, kept):
    folder = tmp_path / "data"
    folder.mkdir()
    config = settings(write_lines(folder, gzip.compress, ".gz"))
    open_documents(config)
    made = sorted(kept.glob("documents/*/documents"))
    assert len(made) == 2 and sum(file.stat().st_size for file in made) == sum(
        len(text.encode()) for text in TEXTS
    )
    for file in made:  # a changed letter shows what is read
        file.write_bytes(b"X" + file.read_bytes()[1:])
    corpus = open_documents(config)
    assert corpus.train[0].startswith(b"X") or corpus.validation[0].startswith(b"X")
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines(["new"] * 40)))
    corpus = open_documents(config)
    assert corpus.train[0] == b"new" and len(corpus.train) + len(corpus.validation) == 80
    elsewhere = settings(config.train, directory=str(tmp_path / "elsewhere"))
    open_documents(elsewhere)
    assert len(list((tmp_path / "elsewhere").glob("documents/*/documents"))) == 2
    assert find_kept(None) == kept


def test_fields_lead_into_objects_and_structures(tmp_path):
    for write in (write_lines, write_parquet, write_arrow):
        folder = tmp_path / write.__name__
        folder.mkdir()
        documents = open_documents(settings(write(folder), field="meta.body"), TOKENIZER).train
        assert [documents[i] for i in range(3)] == [text.encode() for text in TEXTS[:3]]


def test_validation_is_held_out_and_never_trained_on(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_lines(folder)
    given = str(folder / "*.jsonl")
    corpus = open_documents(settings(given, validation=str(folder / "b.jsonl")))
    assert (len(corpus.train), len(corpus.validation)) == (20, 40)
    assert corpus.validation[0] == TEXTS[20].encode()
    assert "20 documents to train on, 40 documents held out" in corpus.description
    with pytest.raises(ConfigError, match="nothing is left to train on"):
        open_documents(settings(given, validation=given))


@pytest.mark.parametrize("percent", [0.5, 3, 5, 33.3, 50, 60, 97])
def test_one_document_of_each_stretch_is_held_out(percent):
    numbers = [str(n).encode() for n in range(1000)]
    train, held = Side(numbers, percent, False), Side(numbers, percent, True)
    sides = [[int(side[i]) for i in range(len(side))] for side in (train, held)]
    assert sides[0] == sorted(sides[0]) and sorted(sides[0] + sides[1]) == list(range(1000))
    assert len(held) == pytest.approx(10 * percent, abs=1)
    longer = Side([*numbers, *numbers], percent, True)
    kept = [int(longer[i]) for i in range(len(held))]
    assert kept == sides[1]  # where documents are added, those before stay


def test_of_few_documents_the_last_part_is_held_out():
    texts = [b"line\n" * 100, b"x", b""]
    train, held, note = hold_out(texts, 5)
    assert note == ": of each document the last 5 %"
    assert [train[i] + held[0] * (i == 0) for i in range(3)] == texts and len(held) == 1
    assert hold_out([np.arange(100, dtype=np.int32)], 5)[1][0].tolist() == [95, 96, 97, 98, 99]
    assert hold_out([b"x"], 5) is None


def test_a_stream_without_ends_is_cut(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(200_000, np.uint16))
    documents = open_documents(settings(str(tmp_path / "x.npy")), TOKENIZER).train
    assert [len(documents[i]) for i in range(4)] == [62259, 62259, 62259, 3222]


def test_bytes_of_tokens_are_those_of_their_text():
    """Of a tokenizer of bytes, also for characters that are split."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXTS[:57], trainer)
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    path = Path(__file__).parent / "no.json"
    tokenizer = HuggingFaceTokenizer.__new__(HuggingFaceTokenizer)
    assert not path.exists()
    tokenizer._known, tokenizer._backend = backend.get_vocab(), backend
    tokenizer.edges = ByteTokenizer.edges
    for text in (*TEXTS, "z̃é世\U0001f600"):
        encoding = backend.encode(text)
        counts = tokenizer.count_bytes(np.asarray(encoding.ids, np.int32))
        assert counts.sum() == len(text.encode())


def write(folder, **files):
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)


OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([None, "a"]), allow_pickle=True)
GOOD = lines(["one", "two"])
PARQUET = b"PAR1" + bytes(100)
WRONG = {
    # What lies in the folder, what is given, and what is said.
    "no JSON": (
        {"a__jsonl": GOOD + b'{"text": \n'},
        "*",
        r"a\.jsonl:3 is not JSON: Expecting value",
    ),
    "no object": (
        {"a__jsonl": b"[1, 2]\n"},
        "*",
        r"a\.jsonl:1 is \[1, 2\]: an object with a field",
    ),
    "no field": (
        {"a__jsonl": GOOD + b'{"body": "x", "meta": {"id": 1, "tags": []}}\n'},
        "*",
        r"a\.jsonl:3 has no field `text` .*It has: body, meta\.id, meta\.tags\.",
    ),
    "a number": ({"a__jsonl": b'{"text": 5}'}, "*", r"jsonl:1, field `text`, is 5, not a text"),
    "null": ({"a__jsonl": b'{"text": null}'}, "*", r"jsonl:1, field `text`, is None, not a text"),
    "no UTF-8": ({"a__jsonl": GOOD + b'{"text": "\xff"}'}, "*", r"jsonl:3 is not UTF-8 \(byte 11 "),
    "nested": ({"a__jsonl": b"[" * 99_999}, "*", r"jsonl:1 is not JSON: it is nested too deep"),
    "UTF-16": (
        {"a__jsonl": GOOD.decode().encode("utf-16")},
        "*",
        r"a\.jsonl is UTF-16: convert it",
    ),
    "UTF-16 packed": (
        {"a__jsonl__gz": gzip.compress(GOOD.decode().encode("utf-16"))},
        "*",
        r"what is in .*a\.jsonl\.gz is UTF-16: convert it",
    ),
    "blank": ({"a__jsonl": b" \n\n"}, "*", r"there is no document in .* \(1 file\)"),
    "one empty": ({"a__jsonl": b""}, "*", r"the file of .* is empty"),
    "objects": (
        {"a__npy": OBJECTS.getvalue()},
        "*",
        r"a\.npy cannot be read as an array of numpy: .*[^.]\.$",
    ),
    "empty": ({"a__jsonl": b"", "b__jsonl": b""}, "*", r"all 2 files of .* are empty"),
    "several kinds": (
        {"a__jsonl": GOOD, "b__txt": b"text"},
        "*",
        r"several formats: .*a\.jsonl \(JSON lines\), .*b\.txt \(text\).*/\*\*/\*\.jsonl'",
    ),
    "a list cut off": (
        {"a__json": b'[\n{"text": "a"},\n{"text": "b"'},
        "*",
        r"a\.json:3 is not JSON",
    ),
    "a list without its end": ({"a__json": b'[{"text": "a"}'}, "*", r"the list does not end: the"),
    "a list and more": ({"a__json": b'["a"] ["b"]'}, "*", r"json:1 is not JSON: something follows"),
    "a list of numbers": ({"a__json": b"[1]"}, "*", r"a\.json:1 is 1: an object with a field"),
    "JSON in Latin-1": ({"a__json": b'["\xe4 "]'}, "*", r"a\.json:1 or soon after is not UTF-8"),
    "gz cut off": ({"a__jsonl__gz": gzip.compress(GOOD * 9)[:-12]}, "*", r"gz is cut off: the"),
    "bz2 cut off": (
        {"a__jsonl__bz2": bz2.compress(GOOD)[:-9]},
        "*",
        r"bz2 is cut off: the archive",
    ),
    "xz cut off": ({"a__jsonl__xz": lzma.compress(GOOD)[:-20]}, "*", r"xz is cut off: the archive"),
    "zst cut off": (
        {"a__txt__zst": zstandard.compress(GOOD * 9)[:-4]},
        "*",
        r"zst is cut off: the",
    ),
    "gz damaged": ({"a__txt__gz": gzip.compress(GOOD)[:-8] + bytes(8)}, "*", r"gz is damaged: CRC"),
    "bz2 damaged": ({"a__txt__bz2": bz2.compress(GOOD)[:20] + b"x" * 99}, "*", r"bz2 is damaged"),
    "xz damaged": ({"a__txt__xz": lzma.compress(GOOD)[:30] + b"x" * 99}, "*", r"xz is damaged"),
    "zst damaged": (
        {"a__txt__zst": zstandard.compress(GOOD)[:9] + b"\xff" * 99},
        "*",
        r"is damaged",
    ),
    "no archive": ({"a__jsonl__zst": GOOD}, "*", r"zst is not compressed as its name says"),
    "no name": ({"a__txt": gzip.compress(GOOD)}, "*", r"gzip: .* with a name that ends in \.gz"),
    "no Parquet": ({"a__parquet": GOOD}, "*", r"a\.parquet is no Parquet file: it begins with b"),
    "in a folder": ({"a__parquet": GOOD, "b__parquet": PARQUET}, "", r"a\.parquet is no Parquet"),
    "Parquet cut off": ({"a__parquet": PARQUET}, "*", r"a\.parquet cannot be read as Parquet"),
    "Parquet packed": ({"a__parquet__gz": PARQUET}, "*", r"file of Parquet may not be: unpack it"),
    "no Arrow": ({"a__arrow": GOOD}, "*", r"a\.arrow cannot be read as Arrow"),
    "no npy": ({"a__npy": GOOD}, "*", r"a\.npy is no array of numpy: it begins with b'"),
    "half a token": ({"a__bin": b"abc"}, "*", r"a\.bin has 3 bytes, which is no whole number"),
    "another tokenizer's": (
        {"a__bin": b"\1\0\1\1\1\1"},
        "*",
        r"a\.bin has the token 257 at 1, but",
    ),
    "llm.c cut off": (
        {"a__bin": np.array([20240520, 1, 9] + [0] * 253, "<i4").tobytes() + b"\1\0"},
        "*",
        r"a\.bin has 1 tokens after its header, which says 9",
    ),
    "an index without tokens": ({"a__idx": b"MMIDIDX"}, "*", r"a\.idx is the index of .*a\.bin, w"),
    "no index": (
        {"a__bin": bytes(4), "a__idx": b"x" * 40},
        "*",
        r"a\.idx is no index of Megatron's",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_its_place(tmp_path, case):
    files, given, words = WRONG[case]
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, **files)
    with pytest.raises(ConfigError, match=f"(?s)^[^\n]*{words}") as caught:
        open_documents(settings(str(folder / given)), TOKENIZER)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.making"))


def test_what_is_wrong_in_tables_is_named(tmp_path):
    parquet, arrow = tmp_path / "a.parquet", tmp_path / "a.arrow"
    data = table([*TEXTS, None])
    pa.parquet.write_table(data, parquet, row_group_size=20)
    pa.feather.write_feather(data, str(arrow), compression="uncompressed")
    for path in map(str, (parquet, arrow)):
        for field, words in (
            ("words", r"has no column `words` .*It has: id, text, meta\.body\."),
            ("id", r"the column `id` is of type int64, not text"),
            ("text", rf"row {len(TEXTS)} has nothing \(null\) in the column `text`"),
        ):
            with pytest.raises(ConfigError, match=words):
                open_documents(settings(path, field=field))
        corpus = open_documents(settings(path, skip_bad=True))
        assert corpus.counts["bad_documents"] == 1 and corpus.train[0] == TEXTS[0].encode()
        assert corpus.description.endswith("; 1 bad document left out")
        assert len(corpus.train) + len(corpus.validation) == len(TEXTS)


def test_a_damaged_page_of_a_table_is_said(tmp_path):
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(table(), path, compression="gzip", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 4 + 200] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"a\.parquet cannot be read as Parquet: "):
        open_documents(settings(str(path)))


def test_bad_documents_are_left_out_and_counted(tmp_path):
    good = lines(TEXTS)
    write(tmp_path, a__jsonl=b"{\n" + good[:-1] + b'\n{"body": 1}\n{"text": [1, 2]}\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl:1 is not JSON: .*--data\.skip-bad True"):
        open_documents(settings(str(tmp_path / "a.jsonl")))
    corpus = open_documents(settings(str(tmp_path / "a.jsonl"), skip_bad=True))
    assert corpus.counts["bad_documents"] == 3 and "a.jsonl:1 is not JSON" in corpus.bad
    assert corpus.train[0] == TEXTS[0].encode()
    assert corpus.description.endswith("; 3 bad documents left out")
    # What was prepared without its bad documents is still refused without the flag.
    with pytest.raises(ConfigError, match=r"a\.jsonl:1 is not JSON: .*--data\.skip-bad True"):
        open_documents(settings(str(tmp_path / "a.jsonl")))
    packed = gzip.compress(good + b"x" * 10_000)
    write(tmp_path, b__jsonl__gz=packed[:-30])
    corpus = open_documents(settings(str(tmp_path / "b.jsonl.gz"), skip_bad=True))
    assert len(corpus.train) and corpus.counts["bad_documents"] == 1 and "is cut off" in corpus.bad


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path):
    write(tmp_path, a__jsonl=lines())
    documents = open_documents(settings(str(tmp_path / "a.jsonl"))).train
    write(tmp_path, a__jsonl=b" " + lines())
    with pytest.raises(ConfigError, match=r"a\.jsonl has changed since .*: run the command again"):
        documents[3]


def test_data_sets_of_datasets_are_named_by_their_folder(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write_saved(tmp_path / split)
    write(tmp_path, dataset_dict__json=b'{"splits": ["train", "test"]}')
    with pytest.raises(ConfigError, match=r"has several data sets. Write .*train or .*test\."):
        open_documents(settings(str(tmp_path)))
    both = settings(str(tmp_path / "train"), validation=str(tmp_path / "test"))
    corpus = open_documents(both)
    assert len(corpus.train) == len(corpus.validation) == len(TEXTS)
    with pytest.raises(ConfigError, match="mixes data sets saved by `datasets`"):
        open_documents(settings((str(tmp_path / "train"), str(tmp_path / "x.txt"))))
    (tmp_path / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ConfigError, match="lacks .*data-00001-of-00002.arrow"):
        open_documents(both)
    write(tmp_path / "test", state__json=b"{")
    with pytest.raises(ConfigError, match="test is damaged"):
        open_documents(settings(str(tmp_path / "test")))


@pytest.mark.parametrize(
    ("module", "given", "words"),
    [
        ("pyarrow", "x.parquet", r"x\.parquet is read by pyarrow.*pip install -e '\.\[parquet\]'"),
        ("pyarrow", "x.arrow", r"x\.arrow is read by pyarrow.*pip install -e '\.\[parquet\]'"),
        ("zstandard", "x.txt.zst", r"zstandard, which is missing: pip install -e '\.\[zstd\]'"),
    ],
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, module, given, words):
    pa.parquet.write_table(table(), tmp_path / "x.parquet")
    write_arrow(tmp_path)
    write(tmp_path, x__txt__zst=zstandard.compress(b"text"))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=words):
        open_documents(settings(str(tmp_path / given)))


def test_evaluation_reads_every_format(tmp_path):
    write_lines(tmp_path)
    options = {"split": "", "directory": None}
    documents, about = open_text(str(tmp_path / "*.jsonl"), field="meta.body", **options)
    assert [documents[i] for i in range(len(documents))] == [text.encode() for text in TEXTS]
    assert about.endswith("*.jsonl: 2 files (10.2 kB), 60 documents")


def test_one_flag_names_what_is_read():
    config = changed(Config(), {"data.train": ["a.jsonl", "b.jsonl"], "data.field": "body"})
    assert config.data.train == ("a.jsonl", "b.jsonl") and not names_tfds(config.data.train)
    with pytest.raises(ConfigError, match="sees images, but --data.train names texts"):
        changed(config, {"model.kind": "vit", "data.source": "digits", "model.image.patch_size": 2})
    both = settings("tfds:a", validation="x.jsonl")
    with pytest.raises(ConfigError, match="are splits of one: give --data.tfds-validation-split"):
        open_documents(both)
    with pytest.raises(ConfigError, match="names no data set: write tfds:lm1b, say"):
        open_documents(settings("tfds:"))


@pytest.mark.parametrize("kind", ["lines zst", "parquet"])
def test_batches_do_not_depend_on_processes_or_on_a_stop(tmp_path, kind):
    config = settings(FORMATS[kind](tmp_path))
    documents = open_documents(config).train

    def read(rows=None, state=None, count=3):
        stream = train_batches(documents, TOKENIZER, config, batch_size=4, rows=rows)
        if state is not None:
            stream.set_state(state)
        found = [next(stream) for _ in range(count)]
        state = stream.get_state()
        stream.close()
        return found, state

    whole, _ = read()
    parts = [read(rows=np.array(rows))[0] for rows in ((0, 1), (2, 3))]
    first, state = read(count=1)
    resumed = first + read(state=json.loads(json.dumps(state)), count=2)[0]
    for number, batch in enumerate(whole):
        for name in batch:
            joined = np.concatenate([part[number][name] for part in parts])
            np.testing.assert_array_equal(joined, batch[name])
            np.testing.assert_array_equal(resumed[number][name], batch[name])


@pytest.mark.slow
def test_a_run_of_packed_lines_goes_on_where_it_stopped(tmp_path, tiny):
    """With tokens that are kept: the losses of a run that was never stopped."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from moejax.train.training import train

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "words": 1, "and": 2, ".": 3}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    folder = tmp_path / "data"
    folder.mkdir()
    given = write_lines(folder, zstandard.compress, ".zst")
    losses = []
    for directory, stops in (("whole", [4]), ("parts", [2, 4])):
        for steps in stops:
            changes = {
                "data.train": given,
                "data.skip_bad": True,
                "data.tokenizer": str(tmp_path / "tokenizer.json"),
                "run.directory": str(tmp_path / directory),
                "run.steps": steps,
                "optim.final_fraction": 1.0,  # a rate that does not depend on the steps
                "optim.warmup_fraction": 0.0,
                "run.log_every": 1,
                "run.eval_every": 4,
                "run.checkpoint_every": 2,
                "run.sample_tokens": 0,
            }
            train(changed(tiny, changes), name="tiny", command="test")
        lines = Path(tmp_path, directory, "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        trained = [line for line in found if line["split"] == "train"]
        assert all(line["bad_documents"] == 0 for line in trained)
        losses.append([line["loss"] for line in trained])
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert len(list((tmp_path / "cache").glob("moejax/tokens/*/about.json"))) == 2
