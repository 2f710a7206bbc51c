"""Growth with tokens and with experts: the fit, the figures, the plot."""

import json
from xml.etree import ElementTree

import pytest

from moejax.config.errors import ConfigError
from moejax.lab.bench import scaling
from moejax.lab.bench.scaling import ScalingBench, fit_exponent, weight_traffic
from moejax.lab.bench.shape import LayerShape


@pytest.mark.parametrize("power", [0.0, 0.31, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(power):
    x = [8, 16, 32, 128]
    assert fit_exponent(x, [3.5 * n**power for n in x]) == pytest.approx(power, abs=1e-12)


def test_the_exponent_is_that_of_least_squares():
    """By hand: log2 of the times 0, 2, 1 over log2 of the tokens 0, 1, 2 has the slope 1/2."""
    assert fit_exponent([1, 2, 4], [1, 4, 2]) == pytest.approx(0.5)


def test_weights_are_three_float32_matrices_an_expert():
    shape = LayerShape(experts=10, width=100, hidden=50)
    moved = weight_traffic(shape)
    assert moved["weights_read_megabytes"] == 10 * 3 * 100 * 50 * 4 / 1e6
    assert moved["gradients_written_megabytes"] == moved["weights_read_megabytes"]


@pytest.mark.slow
def test_a_point_is_measured():
    shape = LayerShape(tokens=16, experts=2, width=8, hidden=8, dispatch="grouped")
    point = scaling.measure_point(shape, rounds=2)
    for which in ("forward", "forward_backward"):
        routed, dense = (point[f"{layer}_{which}_ms"]["median"] for layer in scaling.LAYERS)
        assert point[f"{which}_ratio"]["median"] == pytest.approx(routed / dense)
    assert set(made_up(shape, rounds=2)) == set(point)


def made_up(shape, rounds):
    """Times that grow as we say, and those of the dense layer, which do not know the experts."""
    times = {"low": 1.0, "high": 9.0}
    point = {"tokens": shape.tokens, "experts": shape.experts} | weight_traffic(shape)
    for factor, which in ((1, "forward"), (3, "forward_backward")):
        dense = factor * shape.tokens**0.9
        routed = dense * shape.experts**0.3
        point[f"routed_{which}_ms"] = times | {"median": routed}
        point[f"dense_{which}_ms"] = times | {"median": dense}
        point[f"{which}_ratio"] = times | {"median": routed / dense}
    return point


def test_both_sweeps_are_fitted_and_drawn(tmp_path, monkeypatch, capsys):
    file = tmp_path / "scaling.svg"
    monkeypatch.setattr(scaling, "measure_point", made_up)
    bench = ScalingBench(
        tokens=(64, 16, 32), experts=(2, 4), at_tokens=32, at_experts=2, output=file
    )
    result = json.loads(json.dumps(scaling.measure(bench)))
    assert [p["tokens"] for p in result["over_tokens"]] == [16, 32, 64]
    assert [(p["tokens"], p["experts"]) for p in result["over_experts"]] == [(32, 2), (32, 4)]
    for which in ("forward", "forward_backward"):
        assert result["token_exponent"][which] == pytest.approx(0.9)
        assert result["expert_exponent"][which] == pytest.approx(0.3)
        assert result["dense_expert_exponent"][which] == pytest.approx(0)
    assert len(capsys.readouterr().err.splitlines()) == 4  # a line a point; one is in both sweeps
    text = scaling.report(result)
    assert "routed time grows as experts to the 0.30 forward" in text and str(file) in text
    lines = [p for p in ElementTree.parse(file).iter() if p.tag.endswith("path")]
    assert sum("routed" in p.get("class") for p in lines) == 2 + 2 + 2  # panels, and the legend
    assert sum(p.get("class") == "slope" for p in lines) == 3


def test_wrong_sweeps_are_refused(tmp_path):
    for settings, message in (
        ({"tokens": (512,)}, "--tokens needs at least two different values .* not 512"),
        ({"experts": (8, 8)}, "--experts needs at least two different values"),
        ({"experts": (0, 8)}, "--experts must be greater than 0, not 0"),
        ({"at_tokens": 0}, "--at-tokens must be greater than 0, not 0"),
        ({"experts": (1, 8)}, "--top-k 2 is more than the fewest experts, 1"),
        ({"dispatch": "einsum", "at_tokens": 1000}, "--at-tokens must be a multiple of 256"),
        ({"output": tmp_path / "plot.png"}, "--output must end in .svg"),
        ({"output": tmp_path / "no" / "plot.svg"}, "--output: there is no .*no"),
    ):
        with pytest.raises(ConfigError, match=message):
            ScalingBench(**settings)
