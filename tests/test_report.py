"""The report: every figure is there, nothing leaves the page, and damaged runs are survived."""

import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from moejax.config import Config, RunConfig, to_dict
from moejax.config.errors import RunError
from moejax.lab.study.side_by_side import compare_runs
from moejax.lab.study.study_page import study_html
from moejax.lab.study.tables import make_table, write_markdown
from moejax.runs.expert_load import Load
from moejax.runs.held_out_choices import HeldOutChoices
from moejax.runs.pages.charts import Axis, Series, line_chart, robust_range
from moejax.runs.pages.heatmaps import (
    NOTHING,
    REACH,
    change_ratios,
    fold_rows,
    levels_of_ratios,
    name_folded_rows,
    ratio_levels,
)
from moejax.runs.pages.page import settings_tables
from moejax.runs.pages.report import report_html, write_report
from moejax.runs.pages.router_figures import pair_lift
from moejax.runs.pages.verdict import verdict
from moejax.runs.records import Run, read_run
from moejax.runtime.number_words import duration, four_digits, short, tick_labels

LAYERS, EXPERTS, INTERVALS, EVERY = 3, 8, 12, 50
ROUTING_FIGURES = (
    "Layer 1",
    "Layer 3",
    "All layers, last interval",
    "Max violation",
    "Balance loss",
    "Dead experts",
    "Entropy of the router, nats",
    "Dropped choices, %",
    "Dropped choices by layer, %",
    "Dropped choices by position, %",
    "Entropy by layer, nats",
    "Norm of router weights",
    "Selection bias",
    "Router saturation, %",
    "Z-loss",
)
OTHER_FIGURES = (
    "Bits per byte",
    "Bits per byte, second half",
    "Gradient norm",
    "Learning rate",
    "Throughput, tokens a second",
)
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Tags(HTMLParser):
    """Checks that tags are nested and closed, and collects the figures' titles."""

    def __init__(self, html: str):
        super().__init__()
        self.stack, self.titles, self.attributes = [], [], []
        self.feed(html)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        self.stack += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack[-1:] == ["h3"]:
            self.titles.append(data)


def train_line(i: int) -> dict:
    bits = 1.65 + 3 * math.exp(-i / 3)
    return {
        "step": i * EVERY,
        "split": "train",
        "tokens": i * 100_000,
        "loss": bits * math.log(2),
        "bits_per_byte": bits,
        "perplexity": 2**bits,
        "gradient_norm": 0.5 + 1 / i,
        "learning_rate": 3e-3 * (1 - i / INTERVALS),
        "skipped_updates": 0,
        "tokens_per_second": 20_000.0,
        "seconds": 5.0 * i,
    }


def routing_values(i: int) -> dict:
    return {
        "balance_loss": 1 + 1 / i,
        "z_loss": 4.0,
        "dropped_fraction": 0.1 / i,
        "max_violation": 1 / i,
        "dead_experts": int(i == 1),
        "router_entropy": 1.5,
    }


def validation_line(line: dict) -> dict:
    extra = {"split": "validation", "text_bytes": 1000, "seconds": 1.0}
    gone = ("tokens", "gradient_norm", "learning_rate", "skipped_updates", "tokens_per_second")
    return {key: value for key, value in line.items() if key not in gone} | extra


def write_run(directory, routed=True):
    """A run directory as the trainer would write it."""
    run = RunConfig(steps=INTERVALS * EVERY)
    (directory / "config.json").write_text(json.dumps(to_dict(Config(run=run))))
    lines = []
    for i in range(1, INTERVALS + 1):
        lines.append(train_line(i) | (routing_values(i) if routed else {}))
        if i % 4 == 0:
            lines.append(validation_line(lines[-1]))
            if routed:
                write_choices(directory, i)
        if routed:
            write_load(directory / "load", i)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "name": "a <run> & more",
        "parameters_total": 3_400_000,
        "parameters_active": 1_200_000,
        "flops_per_token": 8_200_000,
        "parts": {
            "head": dict(parameters_total=1000, parameters_active=1000, flops_per_token=6000),
            "experts": dict(parameters_total=3000, parameters_active=0, flops_per_token=0),
        },
        "devices": "1 CPU",
        "data": "text",
        "versions": {"python": "3.11"},
        "command": "python train.py --config 'x<y'",
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "sample.txt").write_text("def <script>alert('&')</script>\x00\n")
    return directory


def write_load(directory, i: int, experts=EXPERTS):
    directory.mkdir(exist_ok=True)
    asked_LE = np.random.default_rng(i).integers(900, 1100, (LAYERS, experts))
    asked_LE[0, 3] = 0 if i < 4 else 1000
    np.savez(
        directory / f"{i * EVERY:08d}.npz",
        asked_LE=asked_LE,
        seated_LE=np.minimum(asked_LE, 1050),
        asked_LW=np.full((LAYERS, 4), 100),
        seated_LW=np.array([[100, 90, 80, 70]] * LAYERS),
        entropy_L=np.linspace(1.0, 1.5, LAYERS),
        router_norm_LE=np.full((LAYERS, experts), 1 + i / 10),
        bias_LE=np.linspace(-0.1, 0.1, LAYERS * experts).reshape(LAYERS, experts),
        tokens=4096,
        layers=np.arange(1, LAYERS + 1),
    )


def write_choices(directory, i: int):
    """Two experts for each of 64 tokens; more of them are the last ones, the later it is."""
    final_LT = np.random.default_rng(0).integers(0, EXPERTS, (LAYERS, 64))
    other_LT = np.random.default_rng(i).integers(0, EXPERTS, (LAYERS, 64))
    first_LT = np.where(np.arange(64) < 64 * i / INTERVALS, final_LT, other_LT)
    chosen_LBNE = np.zeros((LAYERS, 2, 32, EXPERTS), bool)
    for choice_LT in (first_LT, (first_LT + 1) % EXPERTS):
        np.put_along_axis(chosen_LBNE, choice_LT.reshape(LAYERS, 2, 32, 1), True, -1)
    (directory / "choices").mkdir(exist_ok=True)
    arrays = {"bits": np.packbits(chosen_LBNE), "shape": np.array(chosen_LBNE.shape)}
    np.savez(directory / "choices" / f"{i * EVERY:08d}.npz", **arrays)


@pytest.fixture
def moe_run(tmp_path):
    return write_run(tmp_path)


def page_of(directory) -> tuple[str, Tags]:
    html = write_report(directory).read_text(encoding="utf-8")
    return html, Tags(html)


def test_an_moe_run_has_every_figure_and_a_reading_guide_for_each(moe_run):
    html, tags = page_of(moe_run)
    assert set(tags.titles) == {*ROUTING_FIGURES, *OTHER_FIGURES, "Layer 2"}
    assert tags.titles.count("Layer 2") == 2  # the load, and the experts chosen together
    assert html.count("<figcaption>") == html.count("<figure>") == len(tags.titles)
    assert "None" not in html.split("<details>")[0] and "nan" not in html.split("<script>")[0]
    assert [path.name for path in moe_run.glob(".*")] == []
    for cell in ("1k (25.0%)", "3k (75.0%)", "4k (100.0%)", "6k (100.0%)", "–"):
        assert cell in html.split("What it costs")[1].split("</section>")[0]


def test_a_run_with_peaks_and_a_trace_tells_where_the_time_goes(moe_run):
    lines = [json.loads(line) for line in (moe_run / "metrics.jsonl").read_text().splitlines()]
    more = {"mfu": 0.4567, "hfu": 0.6, "bandwidth": 2e11}
    text = "".join(json.dumps(line | more) + "\n" for line in lines)
    (moe_run / "metrics.jsonl").write_text(text)
    part = {"milliseconds": 12.3456, "share": 0.75}
    one = {"name": "fusion.7", "part": "attention_scores", "source": "jit(step)/<x>", **part}
    table = {"first_step": 100, "steps": 5, "parts": {"attention_scores": part}}
    table["operations"] = [one, "not a row"]
    (moe_run / "profile").mkdir()
    (moe_run / "profile/operations.json").write_text(json.dumps(table))
    html, tags = page_of(moe_run)
    assert {"Share of the peak FLOP/s, %", "Memory, GB a second"} <= set(tags.titles)
    assert "45.7%" in html and "of the peak, median" in html
    section = html.split("Where the time goes")[1].split("</section>")[0]
    for said in (
        "steps 100 to 104",
        "attention scores",
        "12.346",
        "75.0%",
        "fusion.7",
        "&lt;x&gt;",
    ):
        assert said in section


@pytest.mark.parametrize("content", ["[]", "{", '{"parts": 3}', '{"parts": {}, "operations": [7]}'])
def test_a_damaged_table_of_a_trace_makes_a_shorter_page(moe_run, content):
    (moe_run / "profile").mkdir()
    (moe_run / "profile/operations.json").write_text(content)
    page_of(moe_run)


def test_a_dense_run_has_no_routing_figures_and_says_so(tmp_path):
    html, tags = page_of(write_run(tmp_path, routed=False))
    assert set(tags.titles) == set(OTHER_FIGURES)
    assert "This model is dense" in html and "Dead experts" not in html


def test_the_page_asks_nothing_of_the_network(moe_run):
    html, tags = page_of(moe_run)
    assert not re.search(r"https?:|//cdn|@import|url\(|\bfetch\(|\bsrc=", html)
    links = [value for name, value in tags.attributes if name in ("src", "href", "xlink:href")]
    assert links and all(link.startswith("data:") for link in links)
    assert "default-src 'none'" in html


def test_text_from_files_is_escaped(moe_run):
    html, _ = page_of(moe_run)
    assert "<h1>a &lt;run&gt; &amp; more</h1>" in html and "x&lt;y" in html
    assert "<b>def </b>&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;␀" in html
    assert html.count("<script>") == 1


def test_a_diverged_run_and_a_cut_last_line_are_survived(moe_run):
    bad = train_line(INTERVALS + 1) | routing_values(INTERVALS + 1)
    bad |= {"loss": math.nan, "bits_per_byte": math.inf, "gradient_norm": None, "z_loss": "?"}
    with (moe_run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(bad) + "\n" + json.dumps(validation_line(bad)) + '\n{"step": 7')
    html, tags = page_of(moe_run)
    assert {*ROUTING_FIGURES, *OTHER_FIGURES} <= set(tags.titles)
    assert "Diverged" in html and "first at step 650" in html
    assert "last line of metrics.jsonl is cut short" in html and 'class="bad"' in html


def words_of(html: str) -> str:
    """What a reader sees of a page, without the table of all settings, which are Python's."""
    html = re.sub(r"<(style|script|details)>.*?</\1>", " ", html, flags=re.S)
    return re.sub(r"<[^>]*>", " ", html)


def begun(lines: list[dict]) -> list[dict]:
    return [line for line in lines if line["step"] < 4 * EVERY]


STATES = {
    "the first interval": lambda lines: lines[:1],
    "before the first evaluation": begun,
    "evaluated only": lambda lines: [line for line in lines if line["split"] == "validation"],
    "figures missing": lambda lines: [
        {k: line[k] for k in ("step", "split", "loss")} for line in lines
    ],
    "figures unknown": lambda lines: [
        {k: v if k in ("step", "split") else None for k, v in line.items()} for line in lines
    ],
    "no routing": lambda lines: [
        {k: v for k, v in line.items() if k not in routing_values(1)} for line in lines
    ],
    "a part": lambda lines: [line | {"split": "part"} for line in lines] + lines,
    "a part only": lambda lines: [line | {"split": "part"} for line in begun(lines)] + lines[:3],
}


@pytest.mark.parametrize("state", STATES)
def test_no_figure_is_written_as_a_program_does(moe_run, state, tmp_path):
    """No `nan`, `inf` or `None` in the pages of a run and of two, nor in their table."""
    lines = [json.loads(line) for line in (moe_run / "metrics.jsonl").read_text().splitlines()]
    made = STATES[state](lines)
    (moe_run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    twin = tmp_path / "twin"
    twin.mkdir()
    write_run(twin)
    for directories in ([moe_run], [moe_run, twin]):
        comparison = compare_runs(directories, "")
        table = write_markdown(make_table(comparison))
        for words in (words_of(study_html(comparison)), table, words_of(page_of(moe_run)[0])):
            assert not re.search(r"\b(nan|inf|none)\b", words, flags=re.I), words
    if state in ("the first interval", "before the first evaluation", "a part only"):
        assert "not finished" in table and "not finite" not in table


def test_a_part_of_what_is_held_out_is_a_line_through_the_whole_of_it(moe_run):
    chart = figure_of(page_of(moe_run)[0], "Bits per byte")
    assert "a part of it" not in chart and 'class="line d0 c1"' in chart
    lines = [json.loads(line) for line in (moe_run / "metrics.jsonl").read_text().splitlines()]
    with (moe_run / "metrics.jsonl").open("a") as file:
        for line in lines:
            if line["split"] == "train":
                file.write(json.dumps(validation_line(line) | {"split": "part"}) + "\n")
    chart = figure_of(page_of(moe_run)[0], "Bits per byte")
    assert "a part of it" in chart and "key spots c1" in chart
    assert chart.count('class="line d0 c1"') == 1 and chart.count('class="dots c1"') == 1


@pytest.mark.parametrize(
    ("x", "labels"),
    [
        (np.arange(3), {"0": "mid", "1": "mid", "2": "mid"}),
        (np.arange(0, 1201, 50), {"0": "mid", "600": "mid", "1,200": "end"}),
        (np.arange(3, 30), {"10": "mid", "25": "mid"}),
    ],
)
def test_a_label_stands_below_its_place_if_it_fits(x, labels):
    chart = line_chart([Series("a", x.astype(float), x.astype(float))], x_name="layer")
    row = re.findall(r'<text x="([\d.]+)" class="(\w+)" y="220">([\d,]+)<', chart)
    found = {label: (float(at), kind) for at, kind, label in row}
    for label, kind in labels.items():
        assert found[label][1] == kind
        if kind == "mid":
            share = (float(label.replace(",", "")) - x[0]) / (x[-1] - x[0])
            assert found[label][0] == pytest.approx(54 + 408 * share, abs=0.1)


def figure_of(html: str, title: str) -> str:
    return next(part for part in html.split("<figure>") if f"<h3>{title}</h3>" in part)


def test_choices_of_a_part_are_shown_rather_than_those_of_whole_evaluations(moe_run):
    (moe_run / "choices").rename(moe_run / "kept")
    shutil.copytree(moe_run / "kept", moe_run / "part_choices")
    assert read_run(moe_run).choices.step_I.tolist() == [200, 400, 600]
    (moe_run / "kept").rename(moe_run / "choices")
    (moe_run / "part_choices" / "00000400.npz").unlink()
    assert read_run(moe_run).choices.step_I.tolist() == [200, 600]


@pytest.mark.parametrize("missing", ["load", "summary.json", "sample.txt", "config.json", "all"])
def test_missing_files_are_survived(moe_run, missing):
    for path in sorted(moe_run.rglob("*"), reverse=True):
        if missing in ("all", path.name, path.parent.name):
            path.rmdir() if path.is_dir() else path.unlink()
    html, tags = page_of(moe_run)
    assert ("Max violation" in tags.titles) == (missing != "all")
    assert ("Selection bias" in tags.titles) == (missing not in ("all", "load"))
    assert ("No metrics have been logged" in html) == (missing == "all")
    assert ("<h2>Sample</h2>" in html) == (missing not in ("all", "sample.txt"))


def test_damaged_files_are_survived_and_named(moe_run):
    (moe_run / "summary.json").write_text('{"name": "cut')
    (moe_run / "config.json").write_text("[1, 2]")
    (moe_run / "load" / "00000050.npz").write_bytes(b"PK\x03\x04 cut")
    write_load(moe_run / "load", 2, experts=4)
    html, tags = page_of(moe_run)
    assert "Layer 1" in tags.titles
    assert "Summary.json is damaged" in html and "Config.json is damaged" in html
    assert "files in load/ that cannot be read, or are of another model: 2" in html.lower()
    with pytest.raises(FileNotFoundError):
        write_report(moe_run / "nowhere")


def test_a_large_run_stays_small():
    asked_ILE = np.random.default_rng(0).integers(0, 1000, (200, 61, 256))
    step_I = np.arange(1, 201) * 250
    load = Load(
        begin=0,
        step_I=step_I,
        asked_ILE=asked_ILE,
        seated_ILE=asked_ILE // 2,
        last_asked_LE=asked_ILE[-1],
        layers=tuple(range(3, 64)),
        entropy_IL=asked_ILE[..., 0] / 100,
        router_norm_ILE=asked_ILE / 10,
        bias_ILE=asked_ILE / 1000,
    )
    together_LEE = np.random.default_rng(1).integers(1, 50, (61, 256, 256))
    choices = HeldOutChoices(step_I[::10], asked_ILE[::10, :, 0] / 1000, together_LEE)
    train = tuple(train_line(i) | routing_values(i) for i in range(1, 3001))
    run = Run(directory=None, summary={"name": "large"}, train=train, load=load, choices=choices)
    html = report_html(run)
    assert len(html.encode()) < 1_500_000
    titles = Tags(html).titles
    assert {"Layer 3", "Layer 63", "Dropped choices by layer"} <= set(titles)


def test_load_is_summed_over_stretches_of_training(moe_run):
    fine, coarse = read_run(moe_run).load, read_run(moe_run, columns=5).load
    assert fine.asked_ILE.shape == (INTERVALS, LAYERS, EXPERTS) and len(coarse.step_I) == 5
    np.testing.assert_array_equal(fine.asked_ILE.sum(0), coarse.asked_ILE.sum(0))
    np.testing.assert_array_equal(fine.asked_ILE[-1], coarse.last_asked_LE)
    assert (coarse.begin, coarse.step_I[-1], coarse.layers) == (0, INTERVALS * EVERY, (1, 2, 3))


def test_choices_are_held_against_those_of_the_last_evaluation(moe_run):
    """By hand: a third of the tokens choose as in the end after a third of the training."""
    choices = read_run(moe_run).choices
    np.testing.assert_array_equal(choices.step_I, [200, 400, 600])
    assert (choices.saturation_IL[0] < choices.saturation_IL[1]).all()
    assert (choices.saturation_IL[0] >= 1 / 3).all() and (choices.saturation_IL[2] == 1).all()
    assert choices.together_LEE.sum((1, 2)).tolist() == [4 * 64] * LAYERS  # ordered pairs and loads


def test_pairs_are_held_against_what_loads_suggest():
    """Loads 4, 4, 2, 2: experts 0 and 1 share all their tokens, as 2 and 3 do."""
    count_EE = np.array([[4, 4, 0, 0], [4, 4, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2]])
    lift_EE = pair_lift(count_EE[None])[0]
    # Of 12 ordered pairs, 16 / 104 each way are expected of 0 and 1: products of loads 16, 8, 4.
    np.testing.assert_allclose(lift_EE[0], [1, 4 / (12 * 16 / 104), 0, 0])
    np.testing.assert_allclose(lift_EE[2], [0, 0, 1, 2 / (12 * 4 / 104)])
    assert (pair_lift(np.diag([3, 2])[None]) == 1).all()  # no token chose two


def test_alarms_stand_at_the_head_of_the_report(moe_run):
    alarm = {"kind": "drops", "words": "30% of <all> choices are dropped."}
    for i in (13, 14):
        line = train_line(i) | routing_values(i) | {"alarms": [alarm]}
        with (moe_run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    html, _ = page_of(moe_run)
    words = "Alarm (drops) at step 700, told 2 times since step 650: 30% of &lt;all&gt; choices"
    assert words in html.split("</header>")[0]


def test_a_resumed_run_counts_a_step_once(moe_run):
    with (moe_run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_line(5) | {"bits_per_byte": 9.0}) + "\n")
    run = read_run(moe_run)
    assert [line["step"] for line in run.train] == [i * EVERY for i in range(1, INTERVALS + 1)]
    assert run.train[4]["bits_per_byte"] == 9.0


def test_the_verdict_names_the_best_step_and_where_it_was_measured(moe_run):
    run = read_run(moe_run)
    assert "after 600 steps, 1.2M tokens and 1 min 0 s of training." in verdict(run)
    assert "best" not in verdict(run)
    worse = run.validation[-1] | {"step": 700, "bits_per_byte": 2.5, "perplexity": 5.7}
    text = verdict(Run(directory=moe_run, train=run.train, validation=(*run.validation, worse)))
    assert text.startswith("2.5 bits per byte of held-out text (perplexity 5.7 per token)")
    assert "best at step 600" in text
    text = verdict(Run(directory=moe_run, train=run.train, validation=run.validation[:1]))
    assert "measured at step 200, after 600 steps" in text


def test_ratio_levels_are_tenths_of_an_octave():
    load_RE = np.array([[100, 100, 0, 200], [1, 1, 1, 1], [0, 0, 0, 0]])
    expected = [[REACH, REACH, NOTHING, 3 * REACH // 2], [REACH] * 4, [REACH] * 4]
    np.testing.assert_array_equal(ratio_levels(load_RE), expected)


def test_levels_of_a_change_of_load():
    """Twice and half the load; as much; to nothing, from nothing, and nothing that stays so."""
    before, after = np.array([[2, 2, 2, 2, 0, 0]]), np.array([[4, 1, 2, 0, 1, 0]])
    levels = levels_of_ratios(change_ratios(after, before))
    assert levels.tolist() == [[30, 10, 20, NOTHING, 40, 20]]


def test_folding_rows_keeps_the_expert_farthest_from_fair():
    level_EI = np.full((8, 2), REACH, np.uint8)
    level_EI[1, 0], level_EI[6, 1], level_EI[7, 1] = REACH + 3, 0, NOTHING
    expected = [[REACH + 3, REACH], [REACH, NOTHING]]
    np.testing.assert_array_equal(fold_rows(level_EI, most=2), expected)
    assert name_folded_rows(range(8), most=2) == ["0–3", "4–7"]
    assert name_folded_rows([1, 5], most=2) == ["1", "5"]


@pytest.mark.parametrize(
    "axis",
    [
        Axis(0.0, 1.0, 100),
        Axis(1.6512, 1.6519, 100),
        Axis(0, 2200, 100),
        Axis(99_500, 100_000, 100),
        Axis(1e-6, 40.0, 100, log=True),
        Axis(0.8, 7.0, 100, log=True),
    ],
)
def test_ticks_are_few_inside_and_told_apart(axis):
    ticks = axis.ticks()
    assert 3 <= len(ticks) <= 8 and axis.low <= min(ticks) and max(ticks) <= axis.high
    assert len(set(tick_labels(ticks))) == len(ticks)
    places = axis.place(np.array(ticks))
    assert np.all(np.diff(places) > 8) and places[0] >= 0 and places[-1] <= axis.length


def test_a_chart_names_what_it_cuts_off():
    x = np.arange(100.0)
    y = 2 + np.sin(x)
    y[50], y[60] = 1e6, np.nan
    chart = line_chart([Series("<loss>", x, y)])
    assert "&lt;loss&gt;" in chart and "1 not finite" in chart
    assert "up to 1,000,000, beyond the axis" in chart
    assert robust_range(y)[1] < 100
    assert "Nothing was logged" in line_chart([])
    assert "not finite" in line_chart([Series("loss", x[:2], np.full(2, np.nan))])


def test_a_long_line_is_thinned_but_its_spikes_stay_in_the_band():
    x = np.arange(5000.0)
    y = np.where(x == 2500, 3.0, 1.0)
    chart = line_chart([Series("loss", x, y)], y_range=(0.0, 4.0), height=100)
    assert len(chart) < 20_000 and 'class="band c0"' in chart
    assert ",25.0" in re.search(r'class="band c0" d="([^"]*)"', chart).group(1)


def test_numbers_read_well():
    assert [short(v) for v in (0, 950, 12_400, 999_600, 3.21e6)] == [
        "0",
        "950",
        "12.4k",
        "1M",
        "3.21M",
    ]
    assert [four_digits(v) for v in (1.65432, 23_406.2, math.nan)] == [
        "1.654",
        "23,406",
        "not finite",
    ]
    assert [duration(s) for s in (12.5, 192, 20_400)] == ["12.5 s", "3 min 12 s", "5 h 40 min"]


def test_runs_side_by_side_have_the_names_of_their_directories(tmp_path):
    runs = [tmp_path / "x" / "one", tmp_path / "x" / "two", tmp_path / "y" / "one"]
    for run in runs:
        run.mkdir(parents=True)
        write_run(run)
    config = json.loads((runs[1] / "config.json").read_text())
    config["optim"]["learning_rate"] = 0.5
    config["run"]["steps"] = 1000
    (runs[1] / "config.json").write_text(json.dumps(config))
    both = compare_runs(runs[:2], "")
    assert [(one.name, one.status) for one in both.outcomes] == [
        ("one", "finished"),
        ("two", "not finished"),
    ]
    assert both.settings["optim.learning_rate"] == {"one": 3e-3, "two": 0.5}
    assert set(both.settings) == {"optim.learning_rate", "run.steps"}
    assert [one.name for one in compare_runs(runs, "").outcomes] == [str(run) for run in runs]


def test_runs_that_differ_in_their_seeds_alone_are_one_with_several(tmp_path):
    """They have a verdict then; the same seed twice is two runs."""
    runs = [tmp_path / f"{name}-seed{seed}" for name in ("good", "poor") for seed in (0, 1)]
    for run in runs:
        run.mkdir()
        write_run(run)
        config = json.loads((run / "config.json").read_text())
        config["run"]["seed"] = config["data"]["seed"] = int(run.name[-1])
        config["optim"]["learning_rate"] = {"g": 0.5, "p": 0.1}[run.name[0]]
        (run / "config.json").write_text(json.dumps(config))
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        more = {"good-seed0": 0.1, "good-seed1": 0.3, "poor-seed0": 1.1, "poor-seed1": 1.31}
        lines = [line | {"bits_per_byte": 2 + more[run.name]} for line in lines]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    both = compare_runs(runs, "")
    assert {name: len(seeds) for name, seeds in both.by_run().items()} == {"good": 2, "poor": 2}
    assert both.settings == {"optim.learning_rate": {"good": 0.5, "poor": 0.1}}
    assert "**2.2000 (2.1000..2.3000)**" in write_markdown(make_table(both))
    twins = [runs[0], runs[1], tmp_path / "again"]
    shutil.copytree(runs[0], twins[2])
    assert [one.name for one in compare_runs(twins, "").outcomes] == [run.name for run in twins]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="there is no directory .*nowhere"):
        compare_runs([tmp_path / "nowhere"], "")
    with pytest.raises(RunError, match="no metrics of a run"):
        compare_runs([tmp_path], "")
    write_run(tmp_path)
    with pytest.raises(RunError, match="given twice"):
        compare_runs([tmp_path, tmp_path], "")


def test_a_long_setting_is_shown_by_its_beginning():
    html = settings_tables({"moe": {"router": "hash_balanced", "token_counts": [12345] * 65536}})
    assert "hash_balanced" in html and "[12345, 12345, " in html and " ...</td>" in html
    assert len(html) < 1000
