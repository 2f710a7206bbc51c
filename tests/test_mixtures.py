"""Mixtures: shares, order and resume; each source's own part; and what is wrong, by source."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from test_run import metrics

from moejax.config import Config, ConfigError, DataConfig, SourceConfig, changed, from_dict, to_dict
from moejax.config.errors import RunError
from moejax.config.mixture import explain_epochs, explain_mixture, make_mixture
from moejax.data.batches import join_states
from moejax.data.mixed_corpus import batch_corpus, cache_corpus, open_corpus, plan_mixture
from moejax.data.mixture import Stretch, Wanted, count_rows, make_plan
from moejax.data.pipeline import validation_batches
from moejax.data.stdlib_parts import split_module
from moejax.data.tokenizer import ByteTokenizer, load_tokenizer
from moejax.inference.kept_files import find_text
from moejax.runs.pages.mixture_figures import mixture_section
from moejax.runs.records import Run
from moejax.train.metrics import describe_sources, share_metrics, source_metrics
from moejax.train.step import count_sources
from moejax.train.training import train

BYTES = ByteTokenizer()
B, STEPS = 8, 500
DOCUMENTS = 600
"""Of each source: Grain shuffles a few of them at 5 ms each, many at a hundredth of that."""
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """What is prepared goes to a place of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def weigh(**weights) -> list[Wanted]:
    return [Wanted(name=name, weight=weight, epochs=None) for name, weight in weights.items()]


# The order of sources: a pure function.


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1, "b": 1.009},  # which numbers of hundredths would take for the same
        {"a": 1000, "b": 1, "c": 3e-3, "d": 7, "e": 0.0, "f": 300},
    ],
)
def test_shares_of_ten_thousand_batches(weights):
    """Of the batches that are drawn; within 0.1 %, and in each batch within the sources' number."""
    size, batches = 16, 10_000
    plan = make_plan(weigh(**weights), batches, size)
    wanted_J = np.array([*weights.values()]) / sum(weights.values())
    drawn = [np.bincount(plan.draw(b, size, 3), minlength=len(weights)) for b in range(batches)]
    taken_bJ = np.cumsum(drawn, 0)
    share_J = taken_bJ[-1] / (size * batches)
    assert np.abs(share_J - wanted_J).max() < 0.001
    after_b1 = size * np.arange(1, batches + 1)[:, None]
    assert np.abs(taken_bJ - after_b1 * wanted_J).max() < len(weights)
    assert plan.shares(size * batches) == share_J.tolist()


def test_three_to_one_by_hand():
    """k = 1..8, w = (3, 1), W = 4: floor(k / 4 + 1/2) are of the second."""
    counts = [count_rows(k, (3, 1)) for k in range(1, 9)]
    assert counts == [[1, 0], [1, 1], [2, 1], [3, 1], [4, 1], [4, 2], [5, 2], [6, 2]]


def test_one_source_alone_grows_with_each_sequence():
    stretch = Stretch(5, (1, 2, 2, 0), (7, 0, 11, 3))
    steps = np.diff([stretch.count(k) for k in range(5, 300)], axis=0)
    assert (steps.min(), steps.max()) == (0, 1) and (steps.sum(1) == 1).all()
    assert not steps[:, 1].any()


def test_rows_of_a_batch_are_drawn_anew():
    """No row always has the same source, though every batch has half of each."""
    plan = make_plan(weigh(a=1, b=1), 100, 2)
    first = [plan.draw(b, 2, 0).tolist() for b in range(64)]
    assert {tuple(rows) for rows in first} == {(0, 1), (1, 0)}
    assert first != [plan.draw(b, 2, 1).tolist() for b in range(64)]
    # These are kept in checkpoints: they never change.
    assert first[:8] == FIRST


FIRST = [[0, 1], [1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [0, 1], [0, 1]]


def test_epochs_are_spread_over_the_run_and_caps_are_kept():
    rows = 100 * B
    wanted = [
        Wanted(name="twice", weight=None, epochs=2, rows=40),
        Wanted(name="most", weight=3, epochs=0.5, rows=400),
        Wanted(name="rest", weight=1, epochs=None),
    ]
    plan = make_plan(wanted, 100, B)
    assert plan.shares(rows) == pytest.approx([0.1, 0.25, 0.65], abs=2 / rows)
    # Until its epochs are over, the second has its weight: 3/4 of what the first leaves.
    assert np.array(plan.count(200)) / 200 == pytest.approx([0.1, 0.675, 0.225], abs=0.01)
    assert plan.count(300)[1] == plan.count(rows)[1] == 200
    # A longer run goes on with the same order, as long as no epochs are spread over it.
    both, longer = (make_plan(wanted[1:], steps, B) for steps in (100, 5 * 100))
    for batch in range(100):
        assert (both.draw(batch, B, 0) == longer.draw(batch, B, 0)).all()
    assert both.describe() == longer.describe()
    # Epochs alone: the run is as long as they are.
    alone = [replace(wanted[0], rows=100), replace(wanted[0], name="once", epochs=1, rows=600)]
    assert make_plan(alone, 100, B).count(rows) == pytest.approx([200, 600], abs=1)


def epochs(rows, count=1.0, weight=None, name="a") -> Wanted:
    return Wanted(name=name, weight=weight, epochs=count, rows=rows)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ([epochs(80, 5)], "of a are 50 steps, and --run.steps is 100: write --run.steps 50"),
        ([epochs(80, 50)], "of a are 500 steps, and --run.steps is 100: write --run.steps 500"),
        ([epochs(80, 1), epochs(8, name="b")], "epochs of a, b are 11 steps"),
        ([epochs(800), *weigh(b=1)], "need all of --run.steps 100.*write --run.steps 101 or more"),
        ([epochs(80, 2, 1.0)], "epochs of a are over after step 20.*write --run.steps 20"),
        ([epochs(8, 1, 1.0), epochs(80, name="b")], "epochs of a are over after step 1,"),
    ],
)
def test_epochs_that_do_not_fit_the_steps(wanted, words):
    with pytest.raises(ConfigError, match=words):
        make_plan(wanted, 100, B)


# Files.

GOOD = 'path = "x"\nweight = 1\n'
WRONG = {
    # What a file says, and the message about it.
    "": r"has no source: write \[NAME\]",
    "a = 1": "`a` is no source",
    "[a": r"is no mixture: Expected .* Write \[NAME\] for each source",
    f"[a]\n{GOOD}[a]\n{GOOD}": r"the source a is there twice \(at line 4",
    "[a]\nweight = 1": "source a has no path",
    '[a]\npath = "x"': "source a: it has neither a weight nor epochs: write weight = 1",
    f"[a]\n{GOOD}wieght = 2": "source a has the unknown key 'wieght'. Did you mean weight",
    f"[a]\n{GOOD}zzz = 2": "the unknown key 'zzz'. There are path, eval, field",
    f"[a]\n{GOOD}name = 'b'": "source a: its name is a: leave `name` out",
    f"['a b']\n{GOOD}": "the name 'a b' of a source",
    f"['']\n{GOOD}": "the name '' of a source",
    f"[a.b]\n{GOOD}": "source a has the unknown key 'b'",
    '[a]\npath = "x"\nweight = -1': "source a: weight must be a number of at least 0, not -1",
    '[a]\npath = "x"\nweight = nan': "source a: weight must be a number of at least 0, not nan",
    '[a]\npath = "x"\nweight = inf': "source a: weight must be a number of at least 0, not inf",
    '[a]\npath = "x"\nweight = "1"': "source a: weight must be float or None, not '1'",
    '[a]\npath = "x"\nweight = true': "source a: weight must be float or None, not True",
    '[a]\npath = "x"\nepochs = 0': "source a: epochs = 0 reads nothing",
    '[a]\npath = "x"\nepochs = -2': "source a: epochs must be a number of at least 0, not -2",
    '[a]\npath = "x"\nweight = 0\nepochs = 2': "weight = 0 reads nothing of it",
    '[a]\npath = "x"\nweight = 0\n[b]\npath = "y"\nweight = 0.0': "the weights sum to 0",
    f"[a]\n{GOOD}[b]\n{GOOD}": "'x' is in two sources, a and b",
    '[a]\npath = ""\nweight = 1': "source a: path must be a path, not ''",
    "[a]\npath = []\nweight = 1": r"source a: path must be a path, not \(\)",
    "[a]\npath = 3\nweight = 1": "source a: path must be str or tuple, not 3",
    f"[a]\n{GOOD}eval = 3": "source a: eval must be str or tuple or None, not 3",
    f"[a]\n{GOOD}field = 3": "source a: field must be str or None, not 3",
    '[a]\npath = "stdlib:x"\nweight = 1': "source a: path stdlib:x: there are stdlib, stdlib:",
    '[a]\npath = "stdlib"\neval = "x"\nweight = 1': "source a: path stdlib has its own held-out",
    '[a]\npath = "tfds:x"\nweight = 1\nchat_template = "plain"': "source a: chat_template plain",
    f"[a]\n{GOOD}chat_template = 'plain'\n[b]\npath = 'y'\nweight = 1\nchat_template = 'chatml'": (
        "has the chat templates chatml, plain: a model has one"
    ),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file(text, tmp_path):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match=WRONG[text]):
        DataConfig(mixture=str(tmp_path / "a.toml"))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), ("folder", "Is a directory"), (b"\xff\xfe[\0", "it is not UTF-8")],
)
def test_no_file(content, words, tmp_path, run_command):
    """Also from the command line: one message, exit code 2."""
    path = tmp_path / "a.toml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    found = run_command("data", "show", "--config", QUICKSTART, "--data.mixture", path)
    assert found.returncode == 2 and found.stderr.startswith(f"error: --data.mixture {path} ")
    assert words in found.stderr and found.stderr.count("\n") == 1


def test_a_list_in_a_config():
    """It is what a file makes, in the order of names, and what ``config.json`` holds."""
    sources = [SourceConfig(name="b", path=["x", "y"], weight=2), {"name": "a", "path": "z"}]
    with pytest.raises(ConfigError, match="source a: it has neither"):
        make_mixture(sources)
    config = Config(data=DataConfig(mixture=[sources[0], sources[1] | {"epochs": 3}]))
    assert [one.name for one in config.data.sources] == ["a", "b"]
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config
    for wrong, words in (
        ([], "has no source"),
        (["x"], "a source is 'x', not a table"),
        ([{"path": "x"}], r"source \(without a name\) has no name"),
        ([sources[0], sources[0]], "there are two sources b"),
    ):
        with pytest.raises(ConfigError, match=words):
            DataConfig(mixture=wrong)
    with pytest.raises(ConfigError, match="--data.train and --data.mixture both say"):
        changed(config, {"data.train": "x"})
    with pytest.raises(ConfigError, match="but --data.mixture names texts"):
        changed(config, {"model.kind": "vit"})


# Batches.


def write_lines(path: Path, letter: str, count: int = DOCUMENTS) -> str:
    texts = [letter * (5 + 13 * n % 20) for n in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A source of each kind, of one letter each."""
    tmp_path = tmp_path_factory.mktemp("sources")
    write_lines(tmp_path / "a.jsonl", "a")
    write_lines(tmp_path / "a_held.jsonl", "a", 7)
    texts = ["b" * (n % 30 + 1) for n in range(DOCUMENTS)]
    table = pa.table({"id": range(DOCUMENTS), "body": texts})
    pa.parquet.write_table(table, tmp_path / "b.parquet")
    ids = np.full(DOCUMENTS * 23, ord("c"), np.uint16)
    ids[::23] = BYTES.edges.end
    np.save(tmp_path / "c.npy", ids)
    (tmp_path / "d").mkdir()
    for n in range(DOCUMENTS):
        (tmp_path / "d" / f"{n}.txt").write_text("d" * (n % 40 + 1))
    return tmp_path


def mix(folder: Path, **changes) -> DataConfig:
    sources = [
        {"name": "a", "path": f"{folder}/a.jsonl", "eval": f"{folder}/a_held.jsonl", "weight": 4},
        {"name": "b", "path": f"{folder}/b.parquet", "field": "body", "weight": 2},
        {"name": "c", "path": f"{folder}/c.npy", "weight": 1},
        {"name": "d", "path": f"{folder}/d", "epochs": 0.5},
    ]
    base = {"sequence_length": 16, "batch_size": B, "shuffle_window": 512, "prefetch": 1}
    return DataConfig(**{"mixture": sources, "directory": str(folder / "kept"), **base, **changes})


def open_batches(config: DataConfig, tokenizer=BYTES, rows=None, steps=STEPS):
    corpus = cache_corpus(open_corpus(config, tokenizer), tokenizer, config, [])
    plan = plan_mixture(corpus, tokenizer, config, steps)
    return batch_corpus(corpus, tokenizer, config, plan, rows), plan


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_same(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_each_row_is_of_one_source_in_every_format(folder):
    batches, plan = open_batches(mix(folder))
    for number, batch in enumerate(take(batches, 12)):
        np.testing.assert_array_equal(batch["sources_B"], plan.draw(number, B, 0))
        for source, targets, bytes_N in zip(
            batch["sources_B"], batch["targets"], batch["bytes"], strict=True
        ):
            assert set(targets[bytes_N > 0]) == {ord("abcd"[source])}
    # Half an epoch of the 570 documents that are not held out: their bytes, and an end for each.
    held = open_corpus(mix(folder), BYTES).sources["d"].validation
    assert len(held) == DOCUMENTS / 20
    targets = 15 * sum(n + 2 for n in range(40)) - sum(len(held[i]) + 1 for i in range(len(held)))
    assert plan.count(STEPS * B)[3] == pytest.approx(targets / 2 / 16, abs=1)


def test_streams_processes_and_a_place_that_is_kept(folder):
    sources = to_dict(mix(folder))["mixture"][:2]
    config = mix(folder, mixture=sources, shards=2)
    batches, plan = open_batches(config)
    whole = take(batches, 9)
    drawn = [plan.draw(number, B, 0).tolist() for number in range(9)]
    assert [batch["sources_B"].tolist() for batch in whole] == drawn  # whatever the streams
    # Processes with rows of their own: the same batches.
    parts = [open_batches(config, rows=rows)[0] for rows in (np.arange(3), np.arange(3, 8))]
    first = [[next(batches) for _ in range(4)] for batches in parts]
    both = [{n: np.concatenate([x[n], y[n]]) for n in x} for x, y in zip(*first, strict=True)]
    assert_same(both, whole[:4])
    # What they save together, another number of processes goes on from.
    place = json.loads(json.dumps(join_states([batches.get_state() for batches in parts])))
    for batches in parts:
        batches.close()
    again, _ = open_batches(config)
    again.set_state(place)
    assert_same(take(again, 5), whole[4:])
    # Other weights are refused by the name of the source.
    other, _ = open_batches(replace(config, mixture=[sources[0] | {"weight": 5}, sources[1]]))
    with pytest.raises(ConfigError, match=r"source a was 0\.\d+ of the sequences, is 0\.\d+"):
        other.set_state(place)
    other.close()


def test_a_source_without_weight_is_evaluated_alone(folder):
    sources = [*to_dict(mix(folder))["mixture"]]
    config = mix(folder, mixture=[sources[0], sources[1] | {"weight": 0}])
    for batch in take(open_batches(config)[0], 3):
        assert not batch["sources_B"].any()
    assert list(open_corpus(config, BYTES).sources) == ["a", "b"]


def test_tokens_are_kept_for_each_source(folder, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "d": 2, "</s>": 3, "?": 4}, "?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.save(str(tmp_path / "tokenizer.json"))
    sources = [one for one in to_dict(mix(folder))["mixture"] if one["name"] in "ad"]
    name, place = str(tmp_path / "tokenizer.json"), str(tmp_path)
    never, auto = (
        mix(folder, mixture=sources, tokenizer=name, token_cache=cached, directory=place)
        for cached in ("never", "auto")
    )
    tokenizer = load_tokenizer(name)
    (one, plan), (other, same) = (open_batches(config, tokenizer) for config in (never, auto))
    assert plan == same
    assert_same(take(one, 6), take(other, 6))
    assert len([*(tmp_path / "tokens").glob("*/about.json")]) == 4  # two of each source


def test_texts_beside_conversations(folder):
    """Of texts all targets are learned, of conversations those of the assistant."""
    talk = {"messages": [{"role": "user", "content": "uuu"}, {"role": "assistant", "content": "x"}]}
    (folder / "chat.jsonl").write_text((json.dumps(talk) + "\n") * DOCUMENTS)
    chat = {"name": "chat", "path": f"{folder}/chat.jsonl", "weight": 1, "chat_template": "plain"}
    texts = to_dict(mix(folder))["mixture"][0] | {"weight": 1}
    config = mix(folder, mixture=[chat, texts], sequence_length=48)
    (batch,) = take(open_batches(config)[0], 1)
    real_BN, text_B = batch["segments"] > 0, batch["sources_B"] == 0
    assert 0 < text_B.sum() < B
    np.testing.assert_array_equal(batch["counted"][text_B], real_BN[text_B])
    learned = batch["targets"][~text_B][batch["counted"][~text_B] > 0]
    assert ord("x") in learned and ord("u") not in learned
    for one in open_corpus(config, BYTES).sources.values():
        held = validation_batches(one.validation, BYTES, config, batch_size=2)
        assert all("counted" in batch for batch in held)
    # Where all are read as conversations, a text is refused, unless it says that it is one.
    plain = replace(config, mixture=[chat, texts | {"path": f"{folder}/d", "eval": None}])
    with pytest.raises(ConfigError, match=r"source a: chat_template: .*\.txt is text"):
        open_corpus(replace(plain, chat_template="plain"), BYTES)
    as_text = {**to_dict(plain)["mixture"][0], "chat_template": "none"}
    open_corpus(replace(plain, chat_template="plain", mixture=[chat, as_text]), BYTES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([{"path": "{}/zzz"}], "source a: path: no file matches .*zzz"),
        ([{"field": "body"}], r"source a: .*:1 has no field `body` \(field\)"),
        ([{"eval": "{}/zzz"}], "source a: eval: no file matches .*zzz"),
        ([{"path": "{}/*"}], "source a: path names files of several formats"),
        ([{}, {"path": ("{}/a.jsonl",), "field": None}], "a.jsonl is in two sources, a and b"),
        (
            [{}, {"path": "{}/a_held.jsonl", "field": None}],
            "a_held.jsonl is held out of source a, but trained on in b",
        ),
    ],
)
def test_sources_that_cannot_be_read(changes, words, folder):
    def put(value):
        if isinstance(value, tuple):
            return tuple(map(put, value))
        return value.format(folder) if isinstance(value, str) else value

    sources = to_dict(mix(folder))["mixture"]
    both = [one | {k: put(v) for k, v in d.items()} for one, d in zip(sources, changes)]  # noqa: B905
    with pytest.raises(ConfigError, match=words) as error:
        open_corpus(mix(folder, mixture=both), BYTES)
    assert "--data.train" not in str(error.value)


def test_too_few_documents_for_the_streams(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "aaa"}\n' * 3)
    sources = [{"name": "a", "path": f"{tmp_path}/a.jsonl", "eval": str(QUICKSTART), "weight": 1}]
    with pytest.raises(ConfigError, match="source a has 3 documents, which do not go round"):
        open_batches(mix(tmp_path, mixture=sources, shards=4))


# Going on.

OLD = [
    {"name": "a", "path": "x", "weight": 0.7},
    {"name": "b", "path": ("y", "z"), "eval": "w", "weight": 0.3},
]


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ([OLD[0] | {"weight": 7}, OLD[1] | {"weight": 3}], ""),
        ([OLD[1], OLD[0]], ""),
        ([OLD[0] | {"weight": 0.5}, OLD[1]], "source a: weight: 0.7 -> 0.5. Write weight = 0.7."),
        ([OLD[0]], 'source b is gone: write [b], path = ["y", "z"], eval = "w", weight = 0.3.'),
        ([*OLD, {"name": "c", "path": "c", "epochs": 2}], "source c is new: take it out."),
        ([OLD[0], OLD[1] | {"eval": None}], "source b: eval: 'w' -> None. Write eval = \"w\"."),
        ([OLD[0] | {"epochs": 3}, OLD[1]], "source a: epochs: None -> 3. Write no epochs."),
        ([OLD[0] | {"path": "y"}, OLD[1]], "source a: path: 'x' -> 'y'. Write path = \"x\"."),
    ],
)
def test_what_has_changed_is_told_by_source(new, words):
    said = explain_mixture(make_mixture(OLD), make_mixture(new))
    assert said.count("\n") == 0 and said.strip() == words


def test_epochs_that_are_spread_over_all_steps_keep_their_number():
    mixture = make_mixture([OLD[0] | {"epochs": 4}, {"name": "c", "path": "c", "epochs": 2}])
    assert explain_epochs(mixture, 30, 30) == ""
    said = explain_epochs(mixture, 30, 60)
    assert "source c: its epochs = 2" in said and said.endswith("Write --run.steps 30.")


def test_a_run_that_has_moved_finds_its_sources(folder, tmp_path, monkeypatch):
    """Relative paths are those of the folder in which it was trained; the template is its copy."""
    run = tmp_path / "run"
    (run / "tokenizer").mkdir(parents=True)
    (run / "tokenizer" / "chat_template.jinja").write_text("x")
    (run / "summary.json").write_text(json.dumps({"folder": str(folder)}))
    monkeypatch.chdir(tmp_path)
    sources = [
        {"name": "a", "path": ["a.jsonl", "zzz"], "eval": "a_held.jsonl", "weight": 1},
        {"name": "b", "path": "stdlib:docstrings", "weight": 1, "chat_template": "mine.jinja"},
        {"name": "c", "path": "tfds:x", "weight": 1, "chat_template": "none"},
    ]
    one, two, three = find_text(run, DataConfig(mixture=sources)).sources
    assert one.path == (f"{folder}/a.jsonl", "zzz") and one.eval == f"{folder}/a_held.jsonl"
    assert two.path == "stdlib:docstrings" and three.path == "tfds:x"
    assert two.chat_template == str(run / "tokenizer" / "chat_template.jinja")
    assert (one.chat_template, three.chat_template) == (None, "none")


# What a run says of its sources.


def test_shares_are_counted_from_the_batch(tiny):
    """Also where sequences lie in two pieces, each of which says whose it is."""
    sources_B = np.array([1, 0, 1, 1, 0, 1, 1, 1], np.int32)
    mixture = [{"name": name, "path": name, "weight": 1} for name in "abc"]
    config = changed(tiny, {"data.mixture": mixture, "data.source": "stdlib"})
    np.testing.assert_array_equal(count_sources(sources_B, config), [2, 6, 0])
    twice = changed(config, {"mesh.context": 2})
    np.testing.assert_array_equal(count_sources(np.tile(sources_B, 2), twice), [2, 6, 0])


def test_lines_of_metrics_and_in_words():
    totals = {"rows_J": np.array([6, 2])}
    assert share_metrics(totals, ["a", "b"]) == {"share/a": 0.75, "share/b": 0.25}
    skipped = share_metrics({"rows_J": np.array([0, 0])}, ["a", "b"])
    assert np.isnan([*skipped.values()]).all() and share_metrics({}, []) == {}
    own = {"nats": 8 * np.log(2), "targets": 4, "text_bytes": 16}
    line = source_metrics({"a": own, "b": None, "c": own | {"nats": 0.0}})
    assert line["bits_per_byte/a"] == pytest.approx(0.5) and line["loss/c"] == 0.0
    assert source_metrics({"": own}) == {} and describe_sources({"loss": 1.0}) == ""
    assert describe_sources(line) == "a 0.5000 bits/byte, c 0.0000 bits/byte"
    assert describe_sources({"share/a": 0.75, "share/b": 0.25}) == "a 75.0%, b 25.0%"


def test_the_page_has_a_curve_for_each_source(tmp_path):
    train = [{"step": n, "share/<a>": 0.7, "share/b": 0.3} for n in range(1, 5)]
    held = [{"step": n, "bits_per_byte/<a>": 2.0, "loss/<a>": 1.4} for n in (2, 4)]
    summary = {"mixture": {"<a>": {"share": 0.7, "data": "<texts>"}, "b": "damaged"}}
    run = Run(directory=tmp_path, train=train, validation=held, summary=summary)
    page = mixture_section(run)
    assert "Bits per byte by source" in page and "Share of each source, %" in page
    assert "<b>&lt;a&gt;</b>, 70.0% of the sequences: &lt;texts&gt;" in page and "<a>" not in page
    assert mixture_section(Run(directory=tmp_path, train=[{"step": 1, "loss": 2.0}])) == ""


@pytest.mark.slow
def test_a_run_that_is_cut_off_goes_on_as_if_it_was_not(tiny, folder, tmp_path, capsys):
    sources = to_dict(mix(folder))["mixture"][:2]
    run = {"directory": str(tmp_path / "run"), "steps": 6, "log_every": 2, "eval_every": 3}
    run |= {"part_every": 2, "checkpoint_every": 3, "sample_tokens": 0}
    data = to_dict(mix(folder, mixture=sources)) | {"source": "stdlib", "files": None}
    config = from_dict(Config, to_dict(tiny) | {"data": data | {"validation_files": None}})
    config = changed(config, {"run": run})
    train(config, name="tiny", command="test")
    lines, said = metrics(run["directory"]), capsys.readouterr().out
    assert "66.7% of the sequences from a: " in said and "  a 6" in said
    assert "         a " in said and "Bits per byte by source" in read_report(run)
    shares = [line["share/a"] for line in lines if line["split"] == "train"]
    assert sum(shares) / 3 == pytest.approx(2 / 3, abs=1 / 24)
    for line in lines:
        assert line["split"] == "train" or {"loss/a", "bits_per_byte/b"} <= line.keys()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    with pytest.raises(RunError, match="source a: weight: 4 -> 5. Write weight = 4."):
        other = [sources[0] | {"weight": 5}, sources[1]]
        train(changed(config, {"data.mixture": other}), name="tiny", command="test")
    again = [sources[0] | {"weight": 0.4}, sources[1] | {"weight": 0.2}]  # the same
    train(changed(config, {"data.mixture": again}), name="tiny", command="test")
    assert metrics(run["directory"]) == lines


def read_report(run: dict) -> str:
    return Path(run["directory"], "report.html").read_text("utf-8")


# The example.


def test_a_module_in_two_parts():
    source = (
        b'#!x\n"""About\n   it.\n"""\nimport a\n\nclass A:\n    """What\n\n       it is."""\n\n'
        b"    def f(self): 'one'; return 1\n\n    def g(self):\n        'nothing \xc3\xa9'\n\n"
        b'async def h():\n    """Last."""\n    x = "no docstring"\n'
    )
    parts = split_module(source)
    said = "About\nit.\n\nWhat\n\nit is.\n\none\n\nnothing é\n\nLast."
    assert parts["prose"].decode() == said
    assert parts["code"] == (
        b"#!x\nimport a\n\nclass A:\n\n    def f(self): ; return 1\n\n"
        b'    def g(self):\n        pass\n\nasync def h():\n    x = "no docstring"\n'
    )
    for other in (b"no Python!", b"x = '\xff'", b"\0", b""):
        assert split_module(other) == {"code": other, "prose": b""}
