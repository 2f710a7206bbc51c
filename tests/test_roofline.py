"""The roofline of a step: its FLOPs and bytes are those of the plan and of the model's matrices."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jax
import pytest

from moejax.commands.main import run
from moejax.commands.plan_cost import CostSettings, make_request, write_chart
from moejax.config import ConfigError, MoEConfig, changed, load_config_file
from moejax.lab.plan.cost_report import table, to_json
from moejax.lab.plan.device_parameters import local_parameters, parameter_shapes
from moejax.lab.plan.devices import DEVICES, paper_mesh
from moejax.lab.plan.part_bytes import scored, touch_products
from moejax.lab.plan.plan_sections import list_flops, list_memory
from moejax.lab.plan.roofline import Roofline, Row, draw_up
from moejax.lab.plan.roofline_chart import roofline_chart
from moejax.lab.plan.roofline_section import list_roofline
from moejax.lab.plan.step_flops import muon_flops, step_flops
from moejax.lab.plan.step_sizes import size_step
from moejax.lab.plan.traffic import list_moves
from moejax.runtime.device_peaks import Peak

V = 64
PEAK = Peak({"float32": 1e12, "bfloat16": 2e12}, memory=1e11, links=1e10, source="here")


@pytest.mark.parametrize(
    ("name", "devices", "kind"),
    [("mixtral_8x7b", 64, "v5p"), ("deepseek_v3", 1024, "h100")],
)
def test_its_parts_are_the_step_of_the_plan(name, devices, kind):
    config = load_config_file(f"configs/{name}.py")
    size, grid = config.model.vocab_size or V, paper_mesh(config.mesh, devices, kind)
    found = draw_up(config, size, grid, DEVICES[kind].peak)
    shapes = parameter_shapes(config, size)
    with jax.sharding.use_abstract_mesh(grid):
        flops = step_flops(config, size) + muon_flops(shapes, config.optim)
        local = local_parameters(config, shapes, grid)
        moves = list_moves(config, size_step(config, size), local)
    assert sum(row.flops for row in found.rows) == pytest.approx(flops)
    assert sum(row.sent for row in found.rows) == sum(move.count * move.bytes for move in moves)
    assert all(row.bytes > 0 or row.sent > 0 for row in found.rows)
    assert 0 < found.mfu(found.apart) <= found.mfu(found.overlapped) < 1
    assert found.binds == "compute"


ATTENTION = {
    "gated": {"model.attention.output_gate": True},
    "latent": {"model.attention": {"kv_rank": 8, "query_rank": 12, "rope_head_size": 4}},
    "with a memory": {"model.attention.kinds": ("delta", "full")},
}


@pytest.mark.parametrize("kind", ATTENTION)
def test_what_products_touch_is_what_matrices_have(tiny, kind):
    """Of each matrix: its own numbers, and for each token those that it reads and writes."""
    moe = replace(tiny.model.moe, shared_experts=1, first_dense=1)
    config = changed(tiny, {"model.moe": moe, "model.num_layers": 4, "model.qk_norm": False})
    config = changed(config, ATTENTION[kind])
    step = size_step(config, V)
    weights, widths = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameter_shapes(config, V)):
        names = [key.key for key in path]
        if len(leaf.shape) < 3 or not names[-1].startswith("w_") or "_E" in names[-1]:
            continue
        own = ("attention", "delta", "shared", "feed_forward")
        part = next((name for name in own if name in names), None)
        if part is not None and "convolution" not in names[-1]:
            weights[part] = weights.get(part, 0) + leaf.size
            widths[part] = widths.get(part, 0) + leaf.shape[0] * sum(leaf.shape[1:])
    found = touch_products(config, step)
    attention, shared = found["attention"], found["shared_experts"]
    assert attention.of_weights == weights["attention"] + weights.get("delta", 0)
    read_once = 0
    if "delta" in widths:  # five matrices, of which the first three are counted as one
        read_once = 2 * step.D * config.model.attention_kinds.count("delta")
    both = widths["attention"] + widths.get("delta", 0)
    assert step.T * (both - read_once) * 0.8 <= attention.of_tokens <= step.T * both
    assert (shared.of_weights, shared.of_tokens) == (weights["shared"], step.T * widths["shared"])
    dense = found["dense_feed_forward"]
    assert dense.of_weights == weights["feed_forward"]
    assert dense.of_tokens == step.T * widths["feed_forward"]


def test_adapters_take_two_thirds_of_the_products_of_parameters_and_little_of_muon(tiny):
    whole = changed(tiny, {"optim.optimizer": "muon", "run.init_from": "model"})
    adapted = changed(whole, {"run.lora.rank": 1})
    rows = [
        {
            row.part: row.flops
            for row in draw_up(config, V, paper_mesh(config.mesh, 1, "v5e"), PEAK).rows
        }
        for config in (whole, adapted)
    ]
    share = {part: rows[1][part] / rows[0][part] for part in rows[0] if rows[0][part]}
    kept = {part: share.pop(part) for part in ("attention_scores", "dispatch") if part in share}
    assert set(kept.values()) == {1.0}
    assert share.pop("optimizer") < 0.1
    assert list(share.values()) == pytest.approx([2 / 3] * len(share))


@pytest.mark.parametrize(("form", "kind"), [("splash", "v5p"), ("cudnn", "h100")])
def test_a_kernel_is_planned_for_its_devices_from_anywhere(form, kind):
    flags = ["--model.attention.form", form, "--model.dtype", "bfloat16"]
    config = Path("configs/quickstart.py")
    request = make_request(CostSettings(config=config, device=kind), flags)
    assert [line for line in list_memory(request).lines if line.key == "attention_form"]
    assert list_flops(request).lines and list_roofline(request)
    other = make_request(
        CostSettings(config=config, device="a100" if kind == "v5p" else "v4"), flags
    )
    with pytest.raises(ConfigError, match=f"{form} is for (tpu|cuda), but this runs on (cuda|tpu)"):
        list_memory(other)


def test_only_dense_attention_writes_scores(tiny):
    config = changed(tiny, {"data.sequence_length": 512, "model.moe.group_size": 512})
    grid = paper_mesh(config.mesh, 1, "v5e")
    moved = {}
    with jax.sharding.use_abstract_mesh(grid):
        for form in ("dense", "blockwise"):
            one = changed(config, {"model.attention.form": form})
            moved[form] = scored(one, size_step(one, V))
        step, layers = size_step(config, V), config.model.num_layers
    pairs = layers * step.T * 512 * config.model.num_heads
    assert moved["dense"] - moved["blockwise"] == 2 * pairs * step.itemsize


def rows(*given: tuple[float, float, float], links: float | None = 1e10) -> list[Row]:
    peak = replace(PEAK, links=links)
    return [Row(f"part {i}", *one, peak, "float32") for i, one in enumerate(given)]


def test_a_part_takes_as_long_as_what_binds_it():
    heavy, light, sent = rows((3e12, 1e11, 0), (1e11, 2e11, 0), (0, 0, 4e10))
    assert (heavy.least, heavy.binds) == (3.0, "compute")
    assert (light.least, light.binds) == (2.0, "memory")
    assert (sent.least, sent.binds) == (4.0, "links")
    found = Roofline([heavy, light, sent], model_flops=2e12)
    assert (found.device_seconds, found.link_seconds) == (5.0, 4.0)
    assert (found.overlapped, found.apart) == (5.0, 9.0)
    assert found.mfu(found.overlapped) == pytest.approx(0.4) and found.binds == "compute"
    slow = Roofline([light, *rows((0, 0, 5e10))], model_flops=2e12)
    assert (slow.overlapped, slow.binds) == (5.0, "links")
    (unknown,) = rows((0, 0, 4e10), links=None)
    assert (unknown.least, unknown.binds) == (0.0, "links")


def test_the_picture_has_a_solid_bar_for_what_binds():
    found = Roofline(rows((3e12, 1e11, 0), (1e8, 1e7, 0), (0, 0, 4e10)), model_flops=2e12)
    drawn = ElementTree.fromstring(roofline_chart(found, "2 x <chip>"))
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "2 x <chip>" in texts and {"part 0", "part 2", "3 s", "4 s"} <= set(texts)
    assert "part 1" not in texts  # too short to be seen
    assert any("at least 4 s (MFU 50.0%)" in text for text in texts)
    bars = [bar.get("class") for bar in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert bars[4:] == ["compute", "memory free", "links"]


def test_a_plan_tells_and_draws_it(tmp_path):
    settings = CostSettings(config=Path("configs/quickstart.py"), device="h200")
    request = make_request(settings, [])
    sections = list_roofline(request)
    found, file = json.loads(json.dumps(to_json(request, sections))), tmp_path / "a.svg"
    write_chart(request, file)
    said = table(request, sections, explain=True)
    assert "over 4.8 TB/s" in said and "████████████████████" in said
    assert found["roofline"]["experts"]["binds"] == "memory"
    assert found["limit"]["best_mfu"]["overlapped"] == pytest.approx(
        3.75e6 * 2048 / found["limit"]["step"]["overlapped_seconds"] / 494.7e12, rel=0.01
    )
    assert file.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cpu", "--chart", "a.svg"], "the peaks of --device cpu are not known"),
        (["--device", "v5e", "--chart", "missing/a.svg"], "missing/a.svg cannot be written"),
        (["--chart", "a.png"], "--chart must end in .svg, not be a.png"),
    ],
)
def test_a_picture_that_cannot_be_is_refused(words, said, tmp_path, monkeypatch):
    config = str(Path("configs/quickstart.py").resolve())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        run(["plan", "--config", config, *words])


@pytest.mark.parametrize("flag", [["--optim.offload", "True"], ["--model.remat", "offload"]])
def test_a_cpu_has_no_other_memory(flag):
    with pytest.raises(ConfigError, match="the CPU has no other"):
        make_request(CostSettings(config=Path("configs/quickstart.py"), device="cpu"), flag)


def test_a_dense_model_has_one(tiny):
    config = changed(tiny, {"model.moe": MoEConfig(every=0), "model.dense_hidden_size": 32})
    found = draw_up(config, V, paper_mesh(config.mesh, 1, "v5e"), PEAK)
    assert not {"experts", "routers", "dispatch"} & {row.part for row in found.rows}
    assert draw_up(config, V, paper_mesh(config.mesh, 1, "v5e"), replace(PEAK, flops={})) is None
