"""``--run.profile``: which steps are traced, and what the table of a trace says."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from test_run import config  # noqa: F401  a fixture
from test_utilisation import PROGRAM

from moejax.config import ConfigError, RunConfig, changed
from moejax.models.parts import find_part
from moejax.runs.metric_lines import read_lines
from moejax.runtime.read_trace import Operation, find_sources, read_module, sum_times
from moejax.train.operations import describe_operations, sum_up
from moejax.train.step_runner import StepRunner
from moejax.train.training import train


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("100", "not START:STOP. To trace the steps 100 to 104, write 100:105"),
        ("a:b", "not START:STOP"),
        ("-1:5", "not START:STOP"),
        ("3:5:7", "not START:STOP"),
        ("0:5", "the first step is 1. Write 1:5"),
        ("0:0", "the first step is 1. Write 1:2"),
        ("7:7", "has no step: STOP is not traced. Write 7:12"),
        ("9:4", "has no step"),
        ("1:900", "would trace 899 steps. Trace at most 100"),
        ("998:1002", "ends after the last step, as --run.steps is 1000. Write 996:1001"),
    ],
)
def test_a_range_that_cannot_be_is_refused(value, words):
    with pytest.raises(ConfigError) as refused:
        RunConfig(profile=value)
    assert f"--run.profile {value}" in str(refused.value) and words in str(refused.value)


def test_the_end_of_a_range_is_not_traced():
    assert list(RunConfig(profile="100:103").profiled) == [100, 101, 102]
    assert RunConfig(steps=9, profile="9:10").profiled == range(9, 10)
    assert not RunConfig().profiled


@pytest.mark.parametrize(
    ("source", "kind", "part"),
    [
        ("jit(step)/jvp(M)/M._run/layers_0/block_0/block_0._attend/attention/attention._project/dot"
         "_general", "dot", "attention"),
        ("jit(step)/transpose(jvp(M))/M._run/layers_0/block_0/attention/attention_scores/exp",
         "fusion", "attention_scores"),
        ("jit(step)/jvp(M)/M._run/layers_0/block_0/delta/mul", "fusion", "attention"),
        ("jit(step)/jvp(M)/M._run/layers_0/block_0/block_0._norm_input/attention_norm/mul",
         "fusion", "norms"),
        ("jit(step)/jvp(M)/layers_0/block_0/moe.run/moe._experts/feed_forward/dot_general",
         "dot", "experts"),
        ("jit(step)/jvp(M)/layers_0/block_0/moe.run/moe._experts/GSEC,GSD->EGCD/dot_general",
         "dot", "dispatch"),
        ("jit(step)/jvp(M)/layers_0/block_0/moe.run/moe._experts/gather", "gather", "dispatch"),
        ("jit(step)/jvp(M)/layers_0/block_0/moe.run/moe._shared/shared/feed_forward/dot_general",
         "dot", "shared_experts"),
        ("jit(step)/jvp(M)/layers_0/block_0/moe.run/moe._score/dot_general", "dot", "routers"),
        ("jit(step)/jvp(M)/M._run/layers_0/block_0/feed_forward/feed_forward/mul", "fusion",
         "dense_feed_forward"),
        ("jit(step)/jvp(head)/dot_general", "dot", "head"),
        ("jit(step)/transpose(jvp(head))/mul", "fusion", "head"),
        ("jit(step)/jvp(DecoderLM)/DecoderLM._run/gather", "gather", "embedding"),
        ("jit(step)/cond/branch_1_fun/optimizer/mul", "fusion", "optimizer"),
        ("jit(step)/gradient_norm/reduce_sum", "reduce", "optimizer"),
        ("jit(step)/jvp(M)/block_0/moe.run/moe._experts/x", "all-to-all-start", "exchange"),
        ("jit(step)/add", "add", "other"),
        ("", "copy", "other"),
    ],
)  # fmt: skip
def test_a_path_tells_the_part_of_the_model(source, kind, part):
    assert find_part(source, kind) == part


def test_a_fusion_is_from_the_product_inside():
    sources = find_sources(PROGRAM.replace("KNOWN", ""))
    path = "jit(step)/jvp(M)/moe/moe._experts/feed_forward/dot_general"
    assert sources["fusion.1"] == ("fusion", path)
    assert sources["copy.7"] == ("copy", path)  # says nothing itself
    assert read_module(PROGRAM) == "jit_step"


def event(name: str, microseconds: float, **stats) -> SimpleNamespace:
    return SimpleNamespace(name=name, duration_ns=1e3 * microseconds, stats=list(stats.items()))


def plane(name: str, **lines) -> SimpleNamespace:
    made = [SimpleNamespace(name=key.replace("_", " "), events=e) for key, e in lines.items()]
    return SimpleNamespace(name=name, lines=made)


def on(name: str, device: int, microseconds: float, module: str = "jit_step") -> SimpleNamespace:
    return event(name, microseconds, hlo_op=name, hlo_module=module, device_ordinal=device)


TRACES = {
    "cpu": [
        plane("/host:metadata"),
        plane(
            "/host:CPU",
            python=[event("train", 9e9, step_num=1)],
            thread_1=[on("dot.1", 0, 3), on("end: dot.1", 0, 1), on("dot.1", 1, 5)],
            thread_2=[on("copy.2", 0, 2), on("dot.1", 0, 7, module="jit_evaluate")],
        ),
    ],
    "tpu": [
        plane("/host:CPU", python=[on("dot.1", 0, 99)]),
        *(
            plane(
                f"/device:TPU:{i}",
                Steps=[event("1", 9e9)],
                XLA_Ops=[
                    event("%dot.1 = f32[8]{0} dot(%a, %b)", 3 + 2 * i),
                    *[event("%copy.2 = f32[8]{0} copy(%a)", 2)] * (1 - i),
                ],
            )
            for i in range(2)
        ),
    ],
    "gpu": [
        plane("/device:GPU:0", Stream_1=[on("dot.1", 0, 3)], Stream_2=[on("copy.2", 0, 2)]),
        plane("/device:GPU:1", Stream_1=[on("dot.1", 0, 5)]),
    ],
}


@pytest.mark.parametrize("platform", TRACES)
def test_the_times_of_a_program_are_read_from_any_platforms_trace(platform):
    times, devices = sum_times(TRACES[platform], "jit_step")
    assert devices == 2
    assert times == {"dot.1": (pytest.approx(8e-6), 2), "copy.2": (pytest.approx(2e-6), 1)}


def test_the_table_is_of_one_step_and_one_device():
    rows = [
        Operation(f"op.{i}", "fusion", "jit(step)/optimizer/mul" if i else "", 0.12 - i / 100, 6)
        for i in range(12)
    ]
    table = sum_up(rows, devices=2, steps=range(100, 103))
    assert (table["first_step"], table["steps"]) == (100, 3)
    assert table["milliseconds"] == pytest.approx(1e3 * sum(r.seconds for r in rows) / 3)
    assert list(table["parts"]) == ["optimizer", "other"]
    assert sum(part["share"] for part in table["parts"].values()) == pytest.approx(1)
    assert len(table["operations"]) == 10
    assert table["operations"][0] | {"milliseconds": 40} == table["operations"][0]
    assert table["operations"][0]["runs_in_a_step"] == 1
    said = describe_operations(table)
    assert "steps 100 to 102" in said and said.count("\n") == 12
    merged = "jit(step)/(gradient_norm/mul:jvp(Model)/moe/dot_general:jvp()/add)"
    both = sum_up([Operation("all-reduce.1", "all-reduce", merged, 0.1, 1)], 1, range(1, 2))
    assert both["operations"][0]["source"] == "jit(step)/gradient_norm/mul and 2 more"
    assert "all-reduce.1 (gradient_norm/mul and 2 more)" in describe_operations(both)
    nothing = sum_up([], devices=0, steps=range(5, 6))
    assert "5 to 5 has no operations" in describe_operations(nothing)


class Traces:
    """A step that does nothing, under a profiler that remembers when it was called."""

    def __init__(self, monkeypatch, tmp_path, value: str) -> None:
        self.done: list = []
        self.said: list[str] = []
        for name in ("start_trace", "stop_trace"):
            monkeypatch.setattr(
                jax.profiler, name, lambda *_, _name=name, **__: self.done.append(_name)
            )
        program = SimpleNamespace(as_text=lambda: PROGRAM)
        run = SimpleNamespace(profile=tmp_path)
        self.runner = StepRunner(
            lambda state, batch: (self.done.append(state), None),
            lambda state, batch: program,
            RunConfig(profile=value),
            run,
        )

    def run(self, *numbers: int) -> list:
        for number in numbers:
            self.runner.run(number, number, {}, self.said.append)
        return self.done


def test_a_trace_holds_the_steps_that_were_asked_for(monkeypatch, tmp_path):
    traces = Traces(monkeypatch, tmp_path, "2:4")
    assert traces.run(1, 2, 3, 4) == [1, "start_trace", 2, 3, "stop_trace", 4]
    assert len(traces.said) == 1 and json.loads((tmp_path / "operations.json").read_text())


def test_a_run_that_goes_on_traces_the_rest(monkeypatch, tmp_path):
    traces = Traces(monkeypatch, tmp_path, "2:5")
    assert traces.run(4, 5) == ["start_trace", 4, "stop_trace", 5]
    later = Traces(monkeypatch, tmp_path, "2:5")
    assert later.run(8, 9) == [8, 9]
    assert later.said == ["profile  the steps 2 to 4 are done: no trace."]


def test_a_trace_that_is_cut_off_ends(monkeypatch, tmp_path):
    traces = Traces(monkeypatch, tmp_path, "2:5")
    traces.run(2)
    traces.runner.close()
    traces.runner.close()
    assert traces.done == ["start_trace", 2, "stop_trace"]


@pytest.mark.slow
def test_a_run_writes_its_trace_and_tells_where_the_time_goes(config, capsys):  # noqa: F811
    traced = changed(config, {"run.profile": "2:4", "run.steps": 4, "run.peak_flops": 1e9})
    train(traced, name="tiny", command="test")
    directory = Path(traced.run.directory)
    assert list((directory / "profile").rglob("*.xplane.pb"))
    table = json.loads((directory / "profile/operations.json").read_text())
    assert table["steps"] == 2 and len(table["operations"]) == 10
    parts = {"attention", "attention_scores", "experts", "routers", "head", "optimizer", "norms"}
    assert set(table["parts"]) >= parts
    assert "profile  steps 2 to 3: operations of" in capsys.readouterr().out
    lines, _ = read_lines(directory / "metrics.jsonl")
    assert all(0 < line["mfu"] < line["hfu"] for line in lines if line["split"] == "train")
    assert "Where the time goes" in (directory / "report.html").read_text()
