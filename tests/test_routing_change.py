"""`moejax report BEFORE AFTER`: two models on the same text, and what cannot be compared."""

import json
import re
import shutil
from pathlib import Path

import hf_models
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from moejax.commands.main import run as run_words
from moejax.commands.report_routing import is_before_and_after
from moejax.config import Config, changed, to_dict
from moejax.lab.routing_change.change import Change, count_kept, look_at_side
from moejax.lab.routing_change.change_page import change_html
from moejax.lab.routing_change.findings import change_json, summarize_change
from moejax.lab.specialisation.association import Choices
from moejax.lab.specialisation.sample import Labels

WORDS = ["<unk>", *(f"word{i}" for i in range(hf_models.V - 1))]


def choose(*layers) -> Choices:
    """Choices of one expert of four by each token, layer by layer."""
    chosen_LTE = np.eye(4, dtype=bool)[np.array(layers)]
    return Choices(np.packbits(chosen_LTE, axis=-1), 4)


def change(tokens=1, names=("a", "<b>"), layers=(1, 3)) -> Change:
    """Eight tokens, of which the first four are of one class: the first layer sends two of these
    to another expert, the second does as before.
    """
    labels = Labels(np.repeat([0, 1], 4 * tokens), names)
    first = np.repeat([0, 0, 1, 1, 2, 2, 2, 2], tokens)
    moved = np.repeat([0, 0, 3, 3, 2, 2, 2, 2], tokens)
    before, after = choose(first, first), choose(moved, first)
    sides = [
        look_at_side(words, c, labels, [2, 3, 5])
        for words, c in (("old <x>", before), ("new", after))
    ]
    return Change(
        before=sides[0],
        after=sides[1],
        data="a <text>",
        tokens=8 * tokens,
        documents=1,
        layers=layers,
        experts=("0", "1", "2", "3"),
        classes=names,
        python=False,
        entropy=1.0,
        kept_LEY=count_kept(before, after, labels),
    )


def test_what_is_kept_by_hand():
    found = change()
    np.testing.assert_allclose(found.agreement_L, [0.75, 1])
    assert found.agreement == pytest.approx(0.875)
    # Loads 2 2 4 0 and 2 0 4 2: (4 + 16) of 8 x 8; then 4 + 4 + 16.
    np.testing.assert_allclose(found.chance_L, [20 / 64, 24 / 64])
    np.testing.assert_allclose(found.kept_of_expert_LE, [[1, 0, 1, 0], [1, 1, 1, 0]])
    np.testing.assert_allclose(found.kept_of_class_LY, [[0.5, 1], [1, 1]])
    np.testing.assert_allclose(found.before.violation_L, [1, 1])
    assert (found.before.dead, found.after.dead) == (2, 2)
    np.testing.assert_allclose(found.before.bits_L, [1, 1])  # an expert tells the class
    np.testing.assert_array_equal(found.after.load_LE, [[2, 0, 4, 2], [2, 2, 4, 0]])


def test_the_figures_are_all_there():
    figures = json.loads(json.dumps(change_json(change())))
    assert figures["agreement"] == [0.75, 1] and figures["layers"] == [1, 3]
    assert figures["agreement_by_chance"] == [20 / 64, 24 / 64]
    assert figures["before"]["load"][0] == [2, 2, 4, 0]
    assert np.shape(figures["after"]["choices"]) == (2, 4, 2)
    said = summarize_change(change(), Path("x.html"), 1.0)
    assert "87.5% of the choices, 34.4% by chance" in said and "layer 3   100.0%" in said
    assert "8 tokens of 1 document, in" in said


@pytest.mark.parametrize("layers", [(1, 3), tuple(range(2))])
def test_the_page_draws_them_and_says_on_which_text(layers):
    html = change_html(change(layers=layers))
    for title in (
        "The same choices, %",
        "What each expert has kept",
        "What each class of token has kept",
        "Load before",
        "Load after",
        "Load after, over that before",
        "Max violation by layer",
        "Bits of the class of a token",
        f"Layer {layers[1]}, before",
        f"Layer {layers[1]}, after",
    ):
        assert f"<h3>{title}</h3>" in html, title
    assert "text: a &lt;text&gt;" in html and "<text>" not in html and "<b>a" not in html
    assert "before: old &lt;x&gt;" in html and "after: new" in html
    assert "<table" not in html and "http" not in re.sub(r"http-equiv", "", html)
    assert f"fewest in layer {layers[0]}: 75%" in html and "The load is as even as before" in html


# --- the command


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Checkpoints of Hugging Face: one, the same with other routers, and others; a text."""
    here = tmp_path_factory.mktemp("before_and_after")
    hf_models.write(here / "before", "mixtral")
    write_tokenizer(here / "before", WORDS)
    shutil.copytree(here / "before", here / "after")
    tensors = load_file(here / "after" / "model.safetensors")
    rng = np.random.default_rng(0)
    for name, x in tensors.items():
        if name.endswith("gate.weight"):
            tensors[name] = x + 0.3 * x.std() * rng.normal(size=x.shape).astype(x.dtype)
    save_file(tensors, here / "after" / "model.safetensors")
    shutil.copytree(here / "before", here / "tokens")
    write_tokenizer(here / "tokens", ["<unk>", *WORDS[:0:-1]])
    hf_models.write(here / "other", "qwen3_moe")
    write_tokenizer(here / "other", WORDS)
    hf_models.write(here / "dense", "llama")
    write_tokenizer(here / "dense", WORDS)
    images = {"model.kind": "vit", "data.source": "digits"}
    for name, changes in (("images", images), ("soft", {"model.moe.router": "soft"})):
        (here / name / "checkpoints").mkdir(parents=True)
        settings = to_dict(changed(Config(), changes))
        (here / name / "config.json").write_text(json.dumps(settings))
    shutil.copytree(here / "before", here / "damaged")
    (here / "damaged" / "config.json").write_text("{")
    words = rng.choice(WORDS[1:], 600)
    (here / "text.txt").write_text(" ".join(words))
    (here / "short.txt").write_text(" ".join(words[:50]))
    return here


def write_tokenizer(folder: Path, words: list[str]) -> None:
    known = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))


def test_two_models_on_a_text(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    run_words(["report", "before", "after", "--data", "text.txt", "--output", "page.html"])
    said = capsys.readouterr().out
    share = float(re.search(r"the same   ([\d.]+)%", said).group(1))
    by_chance = float(re.search(r"([\d.]+)% by chance", said).group(1))
    assert by_chance < share < 100 and "600 tokens of 1 document" in said
    assert "text       text.txt" in said and "page       page.html" in said
    assert "text: text.txt" in (place / "page.html").read_text()


@pytest.mark.slow
def test_a_model_and_itself(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = set(place.iterdir())
    run_words(["import", "before", "imported"])
    capsys.readouterr()
    run_words(["report", "before", "imported", "--data", "text.txt", "--json"])
    got = json.loads(capsys.readouterr().out)
    assert got["agreement"] == [1, 1] and got["page"] is None and got["data"].startswith("text.txt")
    assert got["before"]["load"] == got["after"]["load"]
    assert set(place.iterdir()) == before | {place / "imported"}  # no page is written


REFUSED = [
    ("before other", "other is another model than before, so that their experts do not compare"),
    ("before tokens", "tokens has another tokenizer than before"),
    ("dense dense2", "dense has no routed layer"),
    ("before dense", "dense has no routed layer"),
    ("before images", "images is a classifier of images: routing is compared on text"),
    ("before soft", "every slot holds a part of every token"),
    ("before damaged --routing True", "damaged/config.json"),
    ("before nowhere", "there is no directory nowhere"),
    ("nowhere before", "there is no directory nowhere"),
    ("before after", "--data is missing"),
    ("before after --data nowhere.txt", "nowhere.txt"),
    ("before after --data short.txt", "the text gives 50 tokens, too few to tell"),
    ("before after --data text.txt --output none/page.html", "there is no directory none"),
    ("before after --data text.txt --tokens 0", "--tokens must be greater than 0"),
    ("before after other --routing True", "compares two models, BEFORE and AFTER, not 3"),
    ("before --routing True", "compares two models, BEFORE and AFTER, not 1"),
    ("before --data text.txt", "--data text.txt has no effect on a page of metrics"),
    ("before after --routing False", "holds no metrics of a run"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_does_not_compare_is_named(words, message, place, monkeypatch, refused):
    monkeypatch.chdir(place)
    if "dense2" in words:
        shutil.copytree("dense", "dense2", dirs_exist_ok=True)
    assert message in refused("report", *words.split())


def test_which_page_is_written(tmp_path):
    """Of two runs that of metrics, unless the second began from the first."""

    def write(name: str, began: str | None) -> Path:
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        settings = to_dict(Config())
        settings["run"]["init_from"] = began
        (folder / "config.json").write_text(json.dumps(settings))
        return folder

    one, two = write("one", None), write("two", None)
    tuned = write("tuned", str(one))
    (tmp_path / "imported" / "model").mkdir(parents=True)
    shutil.copy(one / "config.json", tmp_path / "imported" / "config.json")
    assert is_before_and_after(one, tuned)
    assert is_before_and_after(tmp_path / "imported", two)
    assert not is_before_and_after(two, tuned) and not is_before_and_after(tuned, one)
    assert not is_before_and_after(one, tmp_path / "nowhere")
