"""How the time of a routed layer grows with tokens, and with experts at equal active size.

Time grows as a power of the size that varies; the exponent is the slope of a straight line through
the logarithms. The dense layer of equal active size is timed beside it, to show how the machine
itself behaves.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from moejax.config.checks import check
from moejax.config.paths import expand_home
from moejax.lab.bench.programs import PASSES, dense_arms, make_problem, routed_arms
from moejax.lab.bench.scaling_chart import scaling_chart
from moejax.lab.bench.shape import LayerShape, check_groups
from moejax.lab.bench.timing import TimingSettings, interleave, main_clock
from moejax.runtime.atomic_files import write_text
from moejax.runtime.writing import writing_to

LAYERS = ("routed", "dense")


@dataclass(frozen=True, kw_only=True)
class ScalingBench(TimingSettings):
    """Two sweeps: each varies one size and keeps the other."""

    tokens: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    """Tokens (T) of the sweep over tokens."""
    experts: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    """Experts (E) of the sweep over experts; K and F, and so the active size, stay the same."""
    at_experts: int = 8
    """Experts in the sweep over tokens."""
    at_tokens: int = 8192
    """Tokens in the sweep over experts."""
    top_k: int = 2
    """Experts a token chooses (K)."""
    width: int = 512
    """Width (D)."""
    hidden: int = 512
    """Hidden width of an expert (F); the dense layer has K * F."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations and products; parameters are float32."""
    dispatch: Literal["auto", "einsum", "gather", "grouped"] = "grouped"
    """The form of dispatch."""
    output: Path = Path("scaling.svg")
    """The file of the plot."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "output", Path(expand_home("--output", str(self.output))))
        for name in ("tokens", "experts"):
            values = getattr(self, name)
            check(
                len(set(values)) > 1,
                f"--{name} needs at least two different values to grow between, not"
                f" {' '.join(map(str, values)) or 'none'}.",
            )
            check(min(values) > 0, f"--{name} must be greater than 0, not {min(values)}.")
        for name in ("at_experts", "at_tokens", "top_k", "width", "hidden"):
            value = getattr(self, name)
            check(value > 0, f"--{name.replace('_', '-')} must be greater than 0, not {value}.")
        if self.dispatch in ("einsum", "gather"):
            for tokens in self.tokens:
                check_groups("tokens", tokens)
            check_groups("at-tokens", self.at_tokens)
        fewest = min(*self.experts, self.at_experts)
        check(
            self.top_k <= fewest,
            f"--top-k {self.top_k} is more than the fewest experts, {fewest}.",
        )
        check(self.output.suffix == ".svg", f"--output must end in .svg, not be {self.output}.")
        check(self.output.parent.is_dir(), f"--output: there is no {self.output.parent}.")
        for shape in (*self.over_tokens(), *self.over_experts()):
            shape.moe()

    def shape(self, tokens: int, experts: int) -> LayerShape:
        """The layer of one point."""
        fixed = {name: getattr(self, name) for name in ("top_k", "width", "hidden", "dtype")}
        return LayerShape(tokens=tokens, experts=experts, dispatch=self.dispatch, **fixed)

    def over_tokens(self) -> list[LayerShape]:
        """The points of the sweep over tokens."""
        return [self.shape(T, self.at_experts) for T in sorted(set(self.tokens))]

    def over_experts(self) -> list[LayerShape]:
        """The points of the sweep over experts."""
        return [self.shape(self.at_tokens, E) for E in sorted(set(self.experts))]


def measure(bench: ScalingBench) -> dict[str, Any]:
    """Time all points and draw them. Returns the object that ``--json`` prints."""
    bench.prepare_memory()
    shapes = {"tokens": bench.over_tokens(), "experts": bench.over_experts()}
    measured = {}
    every = list(dict.fromkeys(shapes["tokens"] + shapes["experts"]))  # they may share one
    for i, shape in enumerate(every):
        where = f"[{i + 1}/{len(every)}] tokens {shape.tokens}, experts {shape.experts}"
        print(where, file=sys.stderr, flush=True)
        measured[shape] = measure_point(shape, bench.rounds)
    points = {name: [measured[shape] for shape in sweep] for name, sweep in shapes.items()}
    result: dict[str, Any] = {
        "settings": asdict(bench) | {"output": str(bench.output)},
        "backend": jax.default_backend(),
        "clock": main_clock(),
        "token_exponent": fit_exponents(points["tokens"], "tokens", "routed"),
        "expert_exponent": fit_exponents(points["experts"], "experts", "routed"),
        "dense_token_exponent": fit_exponents(points["tokens"], "tokens", "dense"),
        "dense_expert_exponent": fit_exponents(points["experts"], "experts", "dense"),
        "over_tokens": points["tokens"],
        "over_experts": points["experts"],
    }
    with writing_to("--output FILE"):
        write_text(bench.output, scaling_chart(result))
    return result


def measure_point(shape: LayerShape, rounds: int) -> dict[str, Any]:
    """Time one shape: milliseconds of both layers by the main clock, and the traffic of weights."""
    problem = make_problem(shape)
    arms = dense_arms(problem) | routed_arms("routed", problem, shape)
    times, clock = interleave(dict(arms), rounds), main_clock()
    measured = {
        f"{layer}_{key}_ms": times.spread(f"{layer} {name}", clock)
        for layer in LAYERS
        for name, key in PASSES.items()
    }
    ratios = {
        f"{key}_ratio": times.ratio(f"routed {name}", f"dense {name}", clock)
        for name, key in PASSES.items()
    }
    sizes = {"tokens": shape.tokens, "experts": shape.experts}
    return sizes | measured | ratios | weight_traffic(shape)


def weight_traffic(shape: LayerShape) -> dict[str, float]:
    """The least traffic of the experts' weights in one forward+backward, in megabytes. Each weight
    is read, at least once (both passes share this only if all weights fit into a cache), and each
    gradient is written. Both are float32.
    """
    megabytes = 3 * 4 * shape.experts * shape.width * shape.hidden / 1e6
    return {"weights_read_megabytes": megabytes, "gradients_written_megabytes": megabytes}


def fit_exponents(points: Sequence[dict[str, Any]], by: str, layer: str) -> dict[str, float]:
    """The exponents of both passes: see ``fit_exponent``."""
    x = [p[by] for p in points]
    return {
        key: fit_exponent(x, [p[f"{layer}_{key}_ms"]["median"] for p in points])
        for key in PASSES.values()
    }


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The ``a`` of ``y = c x**a``, by least squares of the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def report(result: dict[str, Any]) -> str:
    """A table of each sweep, the exponents, and the place of the plot."""
    lines = []
    for by in ("tokens", "experts"):
        heads = [by, "routed f", "dense f", "ratio", "routed f+b", "dense f+b", "ratio"]
        if by == "experts":
            heads += ["MB read", "MB written"]
        lines.append("".join(f"{head:>12}" for head in heads))
        for p in result[f"over_{by}"]:
            cells = [f"{p[by]}"]
            for key in PASSES.values():
                cells += [f"{p[f'{layer}_{key}_ms']['median']:.1f}" for layer in LAYERS]
                cells.append(f"{p[f'{key}_ratio']['median']:.2f}")
            if by == "experts":
                cells.append(f"{p['weights_read_megabytes']:.1f}")
                cells.append(f"{p['gradients_written_megabytes']:.1f}")
            lines.append("".join(f"{cell:>12}" for cell in cells))
        for kind in ("", "dense_"):
            fitted = result[f"{kind}{by.removesuffix('s')}_exponent"]
            lines.append(
                f"{'dense' if kind else 'routed'} time grows as {by} to the"
                f" {fitted['forward']:.2f} forward, {fitted['forward_backward']:.2f}"
                " forward+backward"
            )
        lines.append("")
    where, clock = result["settings"]["output"], result["clock"]
    return "\n".join(
        [*lines, f"milliseconds of {clock} time on {result['backend']}; plot: {where}"]
    )
