"""What experts take: classes of bytes, the statistics, and `moejax specialisation`."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from moejax.commands.main import run as run_words
from moejax.config import (
    Config,
    DataConfig,
    ModelConfig,
    MoEConfig,
    RunConfig,
    read_config_json,
)
from moejax.config.errors import UserError
from moejax.data.spread import draw_excerpts, order_evenly, share_pieces
from moejax.data.text_files import TextFiles
from moejax.data.tokenizer import ByteTokenizer
from moejax.lab.specialisation.association import (
    Choices,
    associate,
    contributions,
    count_choices,
    draw_shifts,
    entropy,
    mutual_information,
    shifted_counts,
    strongest_cells,
    z_scores,
)
from moejax.lab.specialisation.classes import (
    CLASSES,
    classify_python,
    classify_tokens,
    domains,
    most_frequent,
    visible_label,
)
from moejax.lab.specialisation.collect_choices import check_routed, name_experts
from moejax.lab.specialisation.sample import Sample, draw_sample
from moejax.lab.specialisation.snippets import cut_snippet, pick_spread
from moejax.runs.lift import SURE, lift
from moejax.runs.pages.heatmaps import _lift_palette, lift_heatmap
from moejax.train.training import train

ROOT = Path(__file__).parents[1]
MARKS = dict(zip("kbnsc#oL_?", CLASSES, strict=True))


# --- classes


def marked(source: str) -> str:
    """The class of each byte of a file as one letter."""
    letters = {name: letter for letter, name in MARKS.items()}
    return "".join(letters[CLASSES[i]] for i in classify_python(source.encode()))


@pytest.mark.parametrize(
    ("source", "classes"),
    [
        ("x = 1\n", "n_o_#L"),
        ("def f(x):\n\treturn x\n", "kkk_nonooLLkkkkkk_nL"),
        ("if x:\n  y\n  z\n", "kk_noLLLnLLLnL"),  # only the first of these has an INDENT
        ("@dec\nclass A: pass", "onnnLkkkkk_no_kkkk"),
        ("print(a.print)", "bbbbbononnnnno"),  # what follows a dot is not built in
        ("é = 'ü'  # ß\n", "nn_o_ssss__ccccL"),  # é, ü and ß are two bytes each
        ("f'a{x!r:>{w}}b' + y", "sssssssssssssss_o_n"),  # whatever Python sees in it
        ("f'{f\"{x}\"}'+x", "ssssssssssson"),  # one in another
        ("'''a\n b\n'''\n", "sssssssssssL"),
        ("x = 1 \\\n  + 2\n", "n_o_#_LLLLo_#L"),
        ("a\r\n\r\nb\r\n", "nLLLLnLL"),
        ("\ufeffx=1", "___no#"),
        ("x = 0x1f\n", "n_o_####L"),
        ("", ""),
    ],
)
def test_every_byte_of_python_has_the_class_that_its_tokenizer_gives(source, classes):
    assert marked(source) == classes


@pytest.mark.parametrize("text", [b"x = (1,\n", b'"""never ends', b"  a\n b\n"])
def test_a_file_that_ends_too_soon_is_no_python(text):
    assert classify_python(text) is None


def test_bytes_that_are_not_utf8_do_no_harm_in_a_comment():
    found = classify_python(b"x # \xff\xfe\ny")
    assert [CLASSES[i] for i in found] == ["name", "space", *["comment"] * 4, "line", "name"]


def test_every_file_of_this_project_can_be_read():
    for file in (ROOT / "moejax" / "runs").rglob("*.py"):
        text = file.read_bytes()
        found = classify_python(text)
        assert found.shape == (len(text),)
        names = np.array(CLASSES)[found]
        assert (names != "other").all()
        for word in re.finditer(rb"^from ", text, re.MULTILINE):
            assert set(names[word.start() : word.start() + 4]) <= {"keyword", "string"}


def test_a_token_has_the_class_of_its_first_byte_that_is_not_a_space():
    text = b"if  x:\n  y"
    classes = classify_python(text)
    #           if       __x        :\n        __       y        (none)
    begin, end = np.array([[0, 2], [2, 5], [5, 7], [7, 9], [9, 10], [10, 10]]).T
    names = [CLASSES[i] for i in classify_tokens(classes, text, begin, end)]
    assert names == ["keyword", "name", "operator", "line", "name", "name"]


def test_a_domain_is_the_first_folder_below_what_all_have_in_common():
    assert domains(["asyncio/base.py", "email/mime/text.py", "abc.py"], "(modules)") == [
        "asyncio",
        "email",
        "(modules)",
    ]
    assert domains(["/x/a/1.txt", "/x/b/c/2.txt", "/x/3.txt"], "-") == ["a", "b", "-"]
    assert domains(["/x/a/1.txt", "/x/a/2.txt"], "-") == ["-", "-"]


def test_labels_beyond_the_most_frequent_are_the_rest():
    index, kept = most_frequent(list("banana"), 2)
    assert kept == ["a", "n"] and index.tolist() == [2, 0, 1, 0, 1, 0]
    assert visible_label(b" a\n") == "␣a⏎" and visible_label(b"\x01\xff") == "\\x01\\xff"


# --- the sample


def test_the_first_documents_are_spread_over_all():
    for count in (1, 2, 7, 100, 1000):
        assert sorted(order_evenly(count)) == list(range(count))
    first = np.sort(order_evenly(1000)[:20])
    assert np.diff(first).max() < 100


def test_each_document_gives_as_much_as_the_others_while_it_can():
    assert share_pieces([100, 5, 30], length=10, tokens=60) == [3, 1, 3]
    assert share_pieces([100, 5, 30], length=10, tokens=10**6) == [10, 1, 3]


def test_excerpts_are_cut_from_all_over_the_documents():
    texts = [b"ab" * 50, b"", "é".encode() * 4, b"x" * 1000]
    found = list(draw_excerpts(texts, ByteTokenizer(), length=10, tokens=60))
    assert [one.document for one in found] == [0, 0, 0, 2, 3, 3, 3]
    for one in found:
        text = texts[one.document]
        assert one.text == text
        assert one.is_text_N.sum() >= len(one.inputs_N) - 1
        for token, real, begin, end in zip(
            one.inputs_N, one.is_text_N, one.begin_N, one.end_N, strict=True
        ):
            assert text[begin:end] == (bytes([token]) if real else b"")
    begins = [int(one.begin_N[-1]) for one in found if one.document == 3]
    assert begins[0] < 250 and 400 < begins[1] < 600 and begins[2] > 750


def folder_with(root: Path, files: dict[str, str]) -> TextFiles:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return TextFiles([str(root / name) for name in sorted(files)])


def sample_of(root: Path, files: dict[str, str], length: int = 8) -> Sample:
    return draw_sample(folder_with(root, files), ByteTokenizer(), length, 10**4)


def test_a_sample_of_python_has_its_classes_and_folders(tmp_path):
    files = {"a/one.py": "if x:\n  y = 'é'\n", "b/two.py": "(\n", "three.py": "1\n"}
    sample = sample_of(tmp_path, files)
    text = "".join(files[name] for name in sorted(files)).encode()
    assert bytes(sample.token_T.tolist()) == text
    assert sample.documents == 3 and sample.not_python == 1
    labels = [sample.classes.names[i] for i in sample.classes.label_T]
    assert labels[:5] == ["keyword", "keyword", "space", "name", "operator"]
    assert labels[-4:] == ["other", "other", "number", "line"]
    of_folder = dict.fromkeys(sample.domains.names, 0)
    for i in sample.domains.label_T:
        of_folder[sample.domains.names[i]] += 1
    assert of_folder == {"a": 17, "b": 2, "(modules)": 2}


def test_a_sample_of_other_text_has_its_tokens_for_classes(tmp_path):
    sample = sample_of(tmp_path, {"a.txt": "banana " * 3, "b.txt": "b\n"})
    assert sample.not_python is None and sample.domains is None
    assert sample.classes.names == ("a", "n", "b", "␣", "⏎")
    names = np.array(sample.classes.names)[sample.classes.label_T]
    assert "".join(names) == "banana␣" * 3 + "b⏎"


def test_shuffling_keeps_the_tokens_of_each_piece(tmp_path):
    sample = sample_of(tmp_path, {"a.txt": "abcdefghijklmnopqrstuvwxyz"})
    inputs_BN, order_T = sample.shuffle()
    assert (inputs_BN != sample.inputs_BN).any()
    np.testing.assert_array_equal(np.sort(inputs_BN, 1), np.sort(sample.inputs_BN, 1))
    np.testing.assert_array_equal(inputs_BN[sample.is_text_BN], sample.token_T[order_T])
    assert inputs_BN[0, 0] == ByteTokenizer.edges.end  # a text still begins with it


def test_a_snippet_marks_the_token_and_what_else_the_expert_takes(tmp_path):
    sample = sample_of(tmp_path, {"a.txt": "x = 'é' + y\n"}, length=32)
    chosen_T = np.isin(sample.token_T, list(b"xy'"))
    t = sample.token_T.tolist().index(ord("'"))
    parts = cut_snippet(sample, sample.row_T, chosen_T, t)
    want = [("x", 1), (" = ", 0), ("'", 2), ("é", 0), ("'", 1), (" + ", 0), ("y", 1), ("\n", 0)]
    assert list(parts) == want


def test_places_are_spread_over_the_pieces():
    row_T = np.repeat(np.arange(10), 5)
    assert pick_spread(row_T % 2 == 0, row_T, 3) == [2, 22, 42]
    assert pick_spread(row_T < 0, row_T, 3) == []


# --- the statistics


def test_lift_and_information_of_a_table_by_hand():
    """Expert 0 takes 3 of 4 of class 0, and 1 of 4 of class 1; expert 1 the rest."""
    counts_EY = np.array([[3, 1], [1, 3]])
    np.testing.assert_allclose(lift(counts_EY), [[1.5, 0.5], [0.5, 1.5]])
    own = 2 * 3 / 8 * np.log2(1.5) + 2 * 1 / 8 * np.log2(0.5)
    assert mutual_information(counts_EY) == pytest.approx(own)
    np.testing.assert_allclose(contributions(counts_EY).sum(-1), [own / 2, own / 2])
    assert entropy(counts_EY.sum(0)) == 1 and entropy(np.array([4, 0])) == 0
    assert mutual_information(np.array([[4, 0], [0, 4]])) == 1  # it tells all
    assert mutual_information(np.array([[2, 2], [2, 2]])) == 0
    assert (lift(np.array([[0, 0], [0, 5]])) == 1).all()  # no choice, no class: nothing to say


def test_counts_are_of_choices_and_shifts_go_in_a_circle():
    chosen_TE = np.array([[1, 1], [1, 0], [0, 1], [1, 0]], bool)
    class_T = np.array([0, 0, 1, 1])
    assert count_choices(chosen_TE, class_T, 3).tolist() == [[2, 1, 0], [1, 1, 0]]
    moved = shifted_counts(chosen_TE, class_T, 3, [0, 1, 4])  # by 1: 1 0 0 1
    assert moved[1].tolist() == [[1, 2, 0], [1, 1, 0]]
    assert (moved[2] == moved[0]).all()
    null_ZEY = np.array([[[1.0, 4]], [[3, 4]]])
    sd = np.sqrt(2)
    np.testing.assert_allclose(z_scores(np.array([[4, 5]]), null_ZEY), [[2 / sd, 0]])
    shifts = draw_shifts(100, least=10, count=500)
    assert min(shifts) == 10 and max(shifts) == 90


def pack(chosen_LTE: np.ndarray) -> Choices:
    return Choices(np.packbits(chosen_LTE, axis=-1), chosen_LTE.shape[-1])


def one_hot(which_T: np.ndarray, count: int) -> np.ndarray:
    return np.eye(count, dtype=bool)[which_T]


def runs(rng: np.random.Generator, tokens: int, kinds: int, mean: float) -> np.ndarray:
    """Kinds in runs of random length."""
    changes_T = rng.random(tokens) < 1 / mean
    return rng.integers(0, kinds, tokens)[np.maximum.accumulate(np.arange(tokens) * changes_T)]


def test_a_router_that_goes_by_class_is_told_from_one_that_does_not():
    """Layer 0 gives each of 4 classes an expert of its own; layer 1 draws; shuffled, none can."""
    rng = np.random.default_rng(0)
    class_T, drawn_T, other_T = (runs(rng, 20_000, 4, mean) for mean in (5, 1, 1))
    choices = pack(np.stack([one_hot(class_T, 12), one_hot(drawn_T, 12)]))
    moved = pack(np.stack([one_hot(other_T, 12)] * 2))
    order_T = np.arange(20_000)
    shifts = draw_shifts(20_000, 100, 60)
    found = associate(choices, moved, class_T, order_T, "abcd", shifts)
    assert found.bits_L[0] == pytest.approx(found.entropy) and found.entropy > 1.99
    assert found.bits_L[1] < 0.003 and abs(found.shuffled_L).max() < 0.003
    assert found.bits_L[1] - found.chance_L[1] < 4 * found.chance_sd_L[1]
    share_Y = np.bincount(class_T) / 20_000
    np.testing.assert_allclose(found.lift_LEY[0, :4], np.diag(1 / share_Y))
    assert found.sure_LEY[0, :4].all() and not found.sure_LEY[0, 4:].any()
    best = strongest_cells(found, 10)
    assert {(cell.layer, cell.expert, cell.label) for cell in best[:4]} == {
        (0, i, i) for i in range(4)
    }
    assert best[0].of_class == best[0].of_expert == 1
    assert sum(cell.bits for cell in best[:4]) == pytest.approx(found.entropy)


def test_the_classes_of_a_shuffled_text_follow_their_tokens():
    """Token t is the one that was ``order_T[t]``: a router by token tells as much as before."""
    rng = np.random.default_rng(0)
    class_T, order_T = runs(rng, 2000, 3, 5), rng.permutation(2000)
    choices, moved = (pack(one_hot(x_T, 3)[None]) for x_T in (class_T, class_T[order_T]))
    found = associate(choices, moved, class_T, order_T, "abc", draw_shifts(2000, 100, 20))
    assert found.shuffled_L[0] == pytest.approx(found.bits_L[0]) == pytest.approx(found.entropy)


def test_chance_is_what_it_should_be_also_for_runs():
    """Classes and experts in long runs that have nothing to do with each other: about 0.3 % of the
    cells may lie beyond three standard deviations. Permuted tokens would call a quarter of them so.
    """
    rng = np.random.default_rng(1)
    T, shifted, permuted = 8000, [], []
    for _ in range(8):
        class_T, expert_T = runs(rng, T, 5, 15), runs(rng, T, 8, 25)
        chosen_TE = one_hot(expert_T, 8)
        own_EY = count_choices(chosen_TE, class_T, 5)
        null_ZEY = shifted_counts(chosen_TE, class_T, 5, draw_shifts(T, 200, 100))
        shifted.append(z_scores(own_EY, null_ZEY))
        null_ZEY = [count_choices(chosen_TE, rng.permutation(class_T), 5) for _ in range(40)]
        permuted.append(z_scores(own_EY, np.stack(null_ZEY)))
    z, naive = np.abs(shifted), np.abs(permuted)
    assert z.size == 320
    assert (z >= SURE).mean() < 0.02 and 0.8 < np.std(shifted) < 1.25
    assert (naive >= SURE).mean() > 0.25


def test_a_map_says_of_each_cell_whether_it_is_sure():
    """By the last bit of its alpha, which the hover script reads; numbers are of sure cells."""
    palette = _lift_palette()
    sure, pale = np.split(palette, 2)
    assert (sure[:, 3] % 2 == 0).all() and (pale[:, 3] % 2 == 1).all()
    assert (pale[:, 3] <= np.maximum(1, sure[:, 3] // 4 + 1)).all()
    lift_YX, sure_YX = np.array([[1.25, 3.5], [0.5, 0.75]]), np.array([[1, 0], [0, 1]], bool)
    html = lift_heatmap(lift_YX, sure_YX, ["<a>", "b" * 30], ["0", "null 0"], "expert", "class")
    assert "1.25" in html and "0.75" in html and "3.50" not in html and "0.50" not in html
    assert "<a>" not in html and ">" + "b" * 15 + "…<" in html and "null 0" in html


# --- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of four steps, on files in two folders, of which the second layer is routed."""
    folder = tmp_path_factory.mktemp("specialisation")
    source = (ROOT / "moejax/moe/balance.py").read_text(encoding="utf-8")
    names = [f"{where}/{i}.py" for where in ("a", "b") for i in range(3)]
    folder_with(folder / "text", dict.fromkeys(names, source[:2000].rpartition("\n\n\n")[0]))
    folder_with(folder / "text", {"b/bad.py": "x = (  # <script>alert(1)</script>\n" * 30})
    moe = MoEConfig(
        num_experts=4, identity_experts=1, hidden_size=8, group_size=8, every=2, capacity_factor=0.5
    )
    config = Config(
        model=ModelConfig(num_layers=2, width=16, num_heads=2, unroll=False, moe=moe),
        data=DataConfig(
            source="files",
            files=str(ROOT / "train.py"),
            validation_files=str(folder / "text/**/*.py"),
            sequence_length=16,
            batch_size=8,
            eval_batch_size=8,
            shuffle_window=64,
        ),
        run=RunConfig(directory=str(folder / "run"), steps=4, log_every=4, sample_tokens=0),
    )
    train(config, name="tiny", command="test")
    return folder / "run"


def moejax(*words: str | Path) -> None:
    """Run a subcommand in this process; its errors are raised."""
    run_words([str(word) for word in words])


def test_the_command_writes_a_page_and_a_summary(run, capsys):
    moejax("specialisation", run, "--tokens", "3000", "--shifts", "20")
    said, html = capsys.readouterr().out, (run / "specialisation.html").read_text()
    assert f"page       {run / 'specialisation.html'}" in said
    assert "layer 1   " in said and "layer 0 " not in said  # that one is dense
    assert not re.search(r"(?<![\d.])3 bits", html) and "Python cannot read 1 of the files" in html
    assert "identity 0" in html and "<script>alert" not in html
    assert html.count("<script") == 1 and "http" not in re.sub(r"http-equiv", "", html)
    for word in ("What a choice tells", "Classes", "Domains", "keyword", "Expert 2"):
        assert word in html, word


@pytest.mark.slow
def test_the_command_prints_one_object(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    words = ["--tokens", "3000", "--shifts", "20", "--json", "--output", page]
    moejax("specialisation", run, *words)
    got = json.loads(capsys.readouterr().out)
    assert page.stat().st_size > 10_000 and got["page"] == str(page)
    assert got["layers"] == [1] and got["experts"] == ["0", "1", "2", "3", "identity 0"]
    assert got["documents"] == 7 and got["not_python"] == 1
    classes, domains_ = got["classes"], got["domains"]
    choices_EY = np.array(classes["choices"])[0]
    assert choices_EY.shape == (5, len(classes["names"]))
    assert choices_EY.sum() == 2 * got["tokens"]  # K = 2: nothing is dropped
    assert np.array(domains_["choices"]).sum() == 2 * got["tokens"]
    assert sorted(domains_["names"]) == ["a", "b"]
    assert classes["bits"][0] == pytest.approx(mutual_information(choices_EY))
    assert 0 < classes["bits"][0] < classes["entropy"]
    np.testing.assert_allclose(classes["lift"][0], lift(choices_EY))
    moejax(
        "specialisation", run, *words, "--batch-size", "8", "--mesh.data", "4", "--mesh.expert", "2"
    )
    again = json.loads(capsys.readouterr().out)
    assert again["classes"]["choices"] == classes["choices"]


def test_other_text_goes_by_its_tokens(run, tmp_path, capsys):
    folder_with(tmp_path, {"a.txt": "the cat sat on the mat. " * 40})
    words = ["--data", str(tmp_path / "*.txt"), "--shifts", "20"]
    moejax("specialisation", run, "--json", *words, "--output", tmp_path / "page.html")
    got = json.loads(capsys.readouterr().out)
    assert got["not_python"] is None and got["domains"] is None
    assert got["classes"]["names"][:2] == ["␣", "t"] and got["tokens"] == 24 * 40


@pytest.mark.slow
def test_experts_choose_in_whole_groups(run, tmp_path, capsys):
    """A router that looks at whole groups of 8 tokens."""
    config = read_config_json(run / "config.json")
    moe = dataclasses.replace(
        config.model.moe, router="expert_choice", identity_experts=0, capacity_factor=1.0
    )
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, moe=moe),
        run=dataclasses.replace(config.run, directory=str(tmp_path / "run"), steps=1),
    )
    with pytest.warns(UserWarning, match="looks at later tokens"):
        train(config, name="tiny", command="test")
    capsys.readouterr()
    moejax("specialisation", tmp_path / "run", "--json", "--shifts", "20")
    got = json.loads(capsys.readouterr().out)
    assert np.array(got["classes"]["choices"]).sum() > got["tokens"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/nowhere"], "there is no directory /nowhere"),
        (["RUN", "--tokens", "0"], "--tokens must be greater than 0"),
        (["RUN", "--tokens", "100000000"], "--tokens 100000000 cannot be counted exactly"),
        (["RUN", "--tokens", "100"], "too few to tell anything from chance"),
        (["RUN", "--shifts", "3"], "--shifts 3 give no spread"),
        (["RUN", "--output", "/nowhere/page.html"], "there is no directory /nowhere"),
        (["RUN", "--data", "/nowhere/*"], "--data: no file matches /nowhere"),
        (["RUN", "--batch-size", "6"], "make it a multiple of 8"),
    ],
)
def test_wrong_input_is_named(run, words, message):
    with pytest.raises(UserError) as caught:
        moejax("specialisation", *(str(run) if word == "RUN" else word for word in words))
    assert message in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("router", "moe", "message"),
    [
        ("top_k", {"every": 0}, "a dense model has no experts to look at"),
        ("soft", {"identity_experts": 0}, "every slot holds a part of every token"),
        ("dense", {"top_k": 5}, "every token has every expert"),
    ],
)
def test_models_whose_tokens_choose_nothing_are_refused(run, router, moe, message):
    config = read_config_json(run / "config.json").model
    moe = dataclasses.replace(config.moe, router=router, **moe)
    with pytest.raises(UserError, match=message):
        check_routed(dataclasses.replace(config, moe=moe), Path("run"))


def test_experts_without_computation_have_names():
    moe = MoEConfig(num_experts=2, identity_experts=1, null_experts=2)
    assert name_experts(moe) == ("0", "1", "identity 0", "null 0", "null 1")
