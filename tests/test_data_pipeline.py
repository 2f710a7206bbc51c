"""The pipeline: every byte is scored once, packing by hand, and exact resume."""

import functools
import itertools
import json
from collections import Counter

import numpy as np
import pytest

from moejax.config import ConfigError, DataConfig
from moejax.data.batches import join_states, pick_rows
from moejax.data.pipeline import train_batches, validation_batches
from moejax.data.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
EDGE = TOKENIZER.edges.end


def settings(**changes):
    return DataConfig(**{"sequence_length": 16, "shuffle_window": 160, "batch_size": 12, **changes})


def some_documents(count, seed=0, longest=60):
    """Documents of 1 to ``longest`` letters that begin with their own number."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, longest, count)
    return [b"%04d" % i + rng.bytes(n).hex().encode()[:n] for i, n in enumerate(sizes)]


def pieces_of(batches):
    """(inputs, targets, positions, bytes) of every piece in some batches, in order of rows."""
    for batch in batches:
        for row in zip(*(batch[k] for k in sorted(batch)), strict=True):
            row = dict(zip(sorted(batch), row, strict=True))
            for segment in range(1, row["segments"].max() + 1):
                here = row["segments"] == segment
                yield {name: x_N[here].tolist() for name, x_N in row.items()}


def cut_by_hand(document, length):
    """The (inputs, targets) of each piece, written the slow way."""
    targets = [*document, EDGE]
    inputs = [EDGE, *document]
    for start in range(0, len(targets), length):
        yield tuple(inputs[start : start + length]), tuple(targets[start : start + length])


def test_packing_by_hand():
    """Ten letters make a full row and a rest of three; the rest shares its row with `xyz`."""
    (batch,) = validation_batches(
        [b"abcdefghij", b"xyz"], TOKENIZER, settings(sequence_length=8), batch_size=3
    )
    a, e, i, x = (ord(letter) for letter in "aeix")
    expected = {
        "inputs": [
            [EDGE, a, a + 1, a + 2, a + 3, e, e + 1, e + 2],
            [i - 1, i, i + 1, EDGE, x, x + 1, x + 2, 0],
        ],
        "targets": [
            [a, a + 1, a + 2, a + 3, e, e + 1, e + 2, e + 3],
            [i, i + 1, EDGE, x, x + 1, x + 2, EDGE, 0],
        ],
        "segments": [[1] * 8, [1, 1, 1, 2, 2, 2, 2, 0]],
        "positions": [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 0, 1, 2, 3, 0]],
        "bytes": [[1] * 8, [1, 1, 0, 1, 1, 1, 0, 0]],
    }
    for name, rows in expected.items():
        assert batch[name].dtype == np.int32
        assert batch[name].tolist() == [*rows, [0] * 8], name


def test_every_target_is_scored_exactly_once():
    documents = [*some_documents(150), b"\xff\x00 not UTF-8", "é世🙂".encode()]
    batches = list(validation_batches(documents, TOKENIZER, settings(), batch_size=7))
    assert sum(int(batch["bytes"].sum()) for batch in batches) == sum(map(len, documents))
    assert all(batch["inputs"].shape == (7, 16) for batch in batches)
    found = Counter((tuple(p["inputs"]), tuple(p["targets"])) for p in pieces_of(batches))
    assert found == Counter(piece for text in documents for piece in cut_by_hand(text, 16))
    for piece in pieces_of(batches):
        assert piece["positions"] == list(range(len(piece["inputs"])))
        assert piece["bytes"] == [int(target != EDGE) for target in piece["targets"]]


def test_targets_decode_to_the_documents():
    documents = some_documents(40, longest=100)
    batches = list(
        validation_batches(documents, TOKENIZER, settings(sequence_length=128), batch_size=8)
    )
    texts = [TOKENIZER.decode(piece["targets"]) for piece in pieces_of(batches)]
    assert sorted(texts) == sorted(text.decode() for text in documents)


def test_validation_is_the_same_on_one_and_several_processes():
    documents = some_documents(100)
    whole = list(validation_batches(documents, TOKENIZER, settings(), batch_size=8))
    every_other = [np.arange(i, 8, 4) for i in range(4)]
    shares = [
        list(validation_batches(documents, TOKENIZER, settings(), batch_size=8, rows=rows))
        for rows in every_other
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name in batch:
            joined = np.concatenate([p[name] for p in parts])[np.argsort(np.hstack(every_other))]
            np.testing.assert_array_equal(batch[name], joined)
    first = list(validation_batches(documents, TOKENIZER, settings(), batch_size=8, limit=2))
    assert_same(first, whole[:2])


def test_held_out_documents_are_read_when_their_batch_is_asked_for():
    """All batches of a large text are never in memory together."""
    read = []

    class Documents(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    documents = Documents([b"0123456789"] * 4000)
    batches = validation_batches(documents, TOKENIZER, settings(), batch_size=4)
    assert read == []
    next(batches)
    assert 4 <= len(read) < 400
    assert sum(1 for _ in batches) == 999 and len(read) == 4000


def assert_same(these, those):
    for this, that in zip(these, those, strict=True):
        for name in that:
            np.testing.assert_array_equal(this[name], that[name], err_msg=name)


def take(batches, count):
    return list(itertools.islice(batches, count))


def test_every_document_is_trained_on_about_as_often():
    documents = some_documents(160, longest=10)
    batches = take(train_batches(documents, TOKENIZER, settings(), batch_size=8), 120)
    assert all(batch["inputs"].shape == (8, 16) for batch in batches)
    seen = Counter(TOKENIZER.decode(piece["targets"]) for piece in pieces_of(batches))
    assert set(seen) == {text.decode() for text in documents}
    # Windows reach over the borders of epochs and rows over those of windows.
    assert max(seen.values()) - min(seen.values()) <= 4


def test_seeds():
    documents = some_documents(80)
    first, again, other = (
        take(train_batches(documents, TOKENIZER, settings(seed=seed), batch_size=4), 10)
        for seed in (3, 3, 4)
    )
    assert_same(first, again)
    assert any((a["inputs"] != b["inputs"]).any() for a, b in zip(first, other, strict=True))


def test_streams_are_disjoint_and_cover_and_fill_their_part_of_each_batch():
    documents = some_documents(120, longest=10)
    batches = take(train_batches(documents, TOKENIZER, settings(shards=3), batch_size=12), 50)
    seen = [
        {
            TOKENIZER.decode(piece["targets"])
            for piece in pieces_of(
                [{k: x_BN[part] for k, x_BN in batch.items()} for batch in batches]
            )
        }
        for part in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]
    for stream, found in enumerate(seen):
        assert found == {text.decode() for text in documents[stream::3]}


# The rows of each process: halves, thirds that share streams, hosts that lie crosswise, copies.
PROCESSES = {
    "one": [range(12)],
    "two": [range(6), range(6, 12)],
    "three": [range(4), range(4, 8), range(8, 12)],
    "crosswise": [(0, 1, 4, 5, 8, 9), (2, 3, 6, 7, 10, 11)],
    "copies": [range(6), range(6), range(6, 12), range(6, 12)],
}


def read_rows(shards: int, rows=None):
    """The stream of some documents, or of these of its rows."""
    rows = rows if rows is None else np.array(rows)
    return train_batches(
        some_documents(60), TOKENIZER, settings(shards=shards), batch_size=12, rows=rows
    )


@functools.cache
def whole_batches(shards: int) -> list:
    return take(read_rows(shards), 12)


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("processes", PROCESSES.values(), ids=PROCESSES)
def test_any_number_of_processes_takes_its_rows_of_the_same_batches(shards, processes):
    """And goes on as another number: the place of all streams is in the joined state."""
    whole = whole_batches(shards)
    streams = [read_rows(shards, rows) for rows in processes]
    for rows, stream in zip(processes, streams, strict=True):
        own = [{k: x_BN[list(rows)] for k, x_BN in batch.items()} for batch in whole[:7]]
        assert_same(take(stream, 7), own)
    state = json.loads(json.dumps(join_states([stream.get_state() for stream in streams])))
    assert sorted(state["streams"]) == [str(s) for s in range(shards)]
    resumed = read_rows(shards)
    resumed.set_state(state)
    assert_same(take(resumed, 5), whole[7:])


def test_a_process_reads_the_streams_of_its_rows_alone():
    documents = some_documents(60)
    read = []

    class Recorded(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    rows = np.arange(6, 12)
    config = settings(shards=4)
    take(train_batches(Recorded(documents), TOKENIZER, config, batch_size=12, rows=rows), 3)
    assert {index % 4 for index in read} == {2, 3}


def test_the_place_that_a_run_saved_before_there_were_streams_is_found():
    documents = some_documents(60)
    batches = train_batches(documents, TOKENIZER, settings(), batch_size=4)
    take(batches, 5)
    state = batches.get_state()
    earlier = {"layout": state["layout"] | {"shard": 0}, "grain": state["streams"]["0"]}
    resumed = train_batches(documents, TOKENIZER, settings(), batch_size=4)
    resumed.set_state(earlier)
    assert_same(take(resumed, 3), take(batches, 3))


@pytest.mark.parametrize("prefetch", [1, 4])
def test_resume_is_exact_everywhere(prefetch):
    """120 documents are about 260 pieces, an epoch; 160 are shuffled together, and 64 rows, 16
    batches, packed together. 110 batches of 4 rows pass each of these borders."""
    documents, config = some_documents(120, longest=50), settings(prefetch=prefetch)
    batches = train_batches(documents, TOKENIZER, config, batch_size=4)
    states, given = [], []
    for _ in range(110):
        states.append(json.dumps(batches.get_state()))
        given.append(next(batches))
    assert max(map(len, states)) < 1000
    for index in (0, 1, 15, 16, 17, 33, 50, 64, 77, 98):
        resumed = train_batches(documents, TOKENIZER, config, batch_size=4)
        resumed.set_state(json.loads(states[index]))
        assert json.dumps(resumed.get_state()) == states[index]
        assert_same(take(resumed, 10), given[index : index + 10])
        resumed.close()


def test_resume_of_a_resumed_run_and_going_back():
    documents, config = some_documents(120), settings()
    given = take(train_batches(documents, TOKENIZER, config, batch_size=4), 60)
    state, batches = None, []
    while len(batches) < 60:
        stream = train_batches(documents, TOKENIZER, config, batch_size=4)
        if state is not None:
            stream.set_state(json.loads(state))
        batches += take(stream, 7 if len(batches) < 56 else 4)
        state = json.dumps(stream.get_state())
    assert_same(batches, given)
    start = train_batches(documents, TOKENIZER, config, batch_size=4).get_state()
    stream.set_state(start)
    assert_same(take(stream, 3), given[:3])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": settings(shards=4)}, "shards was 2, is 4"),
        ({"batch_size": 8}, "batch_size was 4, is 8"),
        ({"config": settings(shards=2, seed=1)}, "seed was 0, is 1"),
        ({"config": settings(shards=2, sequence_length=32)}, "sequence_length was 16, is 32"),
        ({"config": settings(shards=2, shuffle_window=9)}, "shuffle_window was 160, is 9"),
        ({"source": some_documents(61)}, "documents was 60, is 61"),
    ],
)
def test_the_state_of_another_stream_is_refused(change, named):
    stream = {
        "source": some_documents(60),
        "tokenizer": TOKENIZER,
        "config": settings(shards=2),
        "batch_size": 4,
    }
    state = train_batches(**stream).get_state()
    with pytest.raises(ConfigError, match=named):
        train_batches(**stream | change).set_state(state)


def test_small_corpora_fill_a_batch_by_repeating():
    batches = train_batches([b"abc"], TOKENIZER, settings(), batch_size=4)
    (batch,) = take(batches, 1)
    assert batch["inputs"][3].tolist() == [EDGE, *b"abc"] * 4
    assert batch["segments"][3].tolist() == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    with pytest.raises(ConfigError, match="2 training examples do not go round --data.shards 3"):
        train_batches([b"a", b"b"], TOKENIZER, settings(batch_size=6, shards=3), batch_size=6)


def test_errors_of_the_source_reach_the_caller():
    class Broken(list):
        def __getitem__(self, index):
            raise ConfigError("cannot read chapter.txt")

    with pytest.raises(ConfigError, match=r"cannot read chapter\.txt"):
        next(train_batches(Broken("ab"), TOKENIZER, settings(), batch_size=4))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_rows_of_a_part_are_spread_evenly_and_are_the_same_for_any_processes(count):
    """Row i of batch b is written 10 b + i."""
    batches = [{"inputs": 10 * b + np.arange(4)[:, None]} for b in range(5)]
    whole = pick_rows(lambda: iter(batches), count, np.arange(4), 4)
    found = [one["inputs"][:, 0].tolist() for one in whole]
    assert (
        found
        == {
            1: [[0, 11, 22, 33]],
            2: [[0, 1, 12, 13], [20, 31, 32, 43]],
            3: [[0, 1, 2, 13], [10, 21, 22, 23], [30, 31, 42, 43]],
            5: [[10 * b + i for i in range(4)] for b in range(5)],
        }[count]
    )
    for rows in (np.arange(2), np.arange(2, 4)):
        own = [{"inputs": one["inputs"][rows]} for one in batches]
        for ours, one in zip(pick_rows(lambda own=own: own, count, rows, 4), whole, strict=True):
            np.testing.assert_array_equal(ours["inputs"], one["inputs"][rows])
