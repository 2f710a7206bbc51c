"""Check and time a routed layer on a Hopper GPU, in the shapes of known models."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import jax
import numpy as np

from moejax.config.checks import check
from moejax.config.errors import UserError
from moejax.lab.bench import reference
from moejax.lab.bench.peers import missing_libraries, ragged_dot_arms, torch_arms
from moejax.lab.bench.programs import (
    PASSES,
    Arm,
    Problem,
    dense_arms,
    full_precision,
    make_problem,
    routed_arms,
)
from moejax.lab.bench.shape import LayerShape, check_groups
from moejax.lab.bench.timing import Times, interleave, main_clock
from moejax.moe.kernels.grouped_feed_forward import grouped_feed_forward
from moejax.moe.kernels.rows import sort_rows

Name = Literal["e64", "e8", "e128"]
SIZES: dict[str, dict[str, int]] = {
    "e64": {"width": 2048, "hidden": 1408, "experts": 64, "top_k": 8},
    "e8": {"width": 4096, "hidden": 14336, "experts": 8, "top_k": 2},
    "e128": {"width": 2048, "hidden": 768, "experts": 128, "top_k": 8},
}
"""By their number of experts; close to DeepSeek-V2-Lite, Mixtral 8x7B and Qwen3-30B-A3B."""
TINY = {
    "e64": {"width": 64, "hidden": 128, "experts": 8, "top_k": 4},
    "e8": {"width": 128, "hidden": 64, "experts": 4, "top_k": 2},
    "e128": {"width": 64, "hidden": 64, "experts": 16, "top_k": 4},
}
LIMITS = {"float32": 1e-4, "bfloat16": 1e-2}
"""The largest allowed difference from float64, divided by the largest value."""
TOKENS_CHECKED, UNITS_CHECKED = 64, 32


@dataclass(frozen=True, kw_only=True)
class GpuBench:
    """Which shapes are checked and timed, and how."""

    only: tuple[Name, ...] = ("e64", "e8", "e128")
    """Shapes, named by their number of experts."""
    tokens: int = 16384
    """Tokens (T); 256 with --tiny."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the activations and products; the kernels for Hopper need 16 bits."""
    rounds: int = 9
    """Timed rounds."""
    tiny: bool = False
    """Run all of it in small shapes on any machine, to see that it works."""

    def __post_init__(self) -> None:
        check(bool(self.only), f"--only needs at least one of {', '.join(SIZES)}.")
        check(self.rounds > 0, f"--rounds must be greater than 0, not {self.rounds}.")
        check(self.tokens > 0, f"--tokens must be greater than 0, not {self.tokens}.")
        check_groups("tokens", self.tokens)

    def shape(
        self, name: str, dispatch: Literal["grouped", "gather", "einsum"] = "grouped"
    ) -> LayerShape:
        """A shape by its name."""
        tokens = 256 if self.tiny else self.tokens
        sizes: dict[str, Any] = TINY[name] if self.tiny else SIZES[name]
        return LayerShape(tokens=tokens, dtype=self.dtype, dispatch=dispatch, **sizes)


def measure(bench: GpuBench) -> dict[str, Any]:
    """Check and time. Returns the object that ``--json`` prints."""
    backend, device = jax.default_backend(), jax.devices()[0]
    if backend != "gpu" and not bench.tiny:
        raise UserError(
            f"moejax bench gpu waits for an NVIDIA GPU, best a Hopper one, and JAX sees a {backend}"
            " here. On a machine that has one: pip install -e '.[cuda]'. To see all of it run in"
            " small shapes on any machine: --tiny."
        )
    with full_precision(bench.dtype):
        shapes = {name: measure_shape(bench, name) for name in bench.only}
    result = {"device": device.device_kind, "backend": backend, "clock": main_clock()}
    result |= {"settings": asdict(bench), "limit": LIMITS[bench.dtype], "shapes": shapes}
    result["right"] = all(shape["right"] for shape in shapes.values())
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return result | {"device_peak_gigabytes": None if peak is None else peak / 1e9}


def measure_shape(bench: GpuBench, name: str) -> dict[str, Any]:
    """The errors, times, ratios and memory of one shape."""
    shape = bench.shape(name)
    problem = make_problem(shape)
    errors: dict[str, Any] = {}
    failed: dict[str, Any] = {}

    def check_kernels() -> dict:
        errors.update(kernel_errors(problem))
        return {}

    arms: dict[str, Callable] = {}
    attempts = {
        "check": check_kernels,
        "grouped": lambda: routed_arms("grouped", problem, shape),
        "einsum": lambda: routed_arms("einsum", problem, bench.shape(name, "einsum")),
        "gather": lambda: routed_arms("gather", problem, bench.shape(name, "gather")),
        "dense": lambda: dense_arms(problem),
        "ragged_dot": lambda: ragged_dot_arms(problem),
        "torch grouped_mm": lambda: grouped_mm_arms(problem),
    }
    for arm, make in attempts.items():
        made, why = attempt(make)
        arms |= made
        failed |= {arm: why} if why else {}
    times = interleave(arms, bench.rounds)
    return {
        "shape": asdict(shape),
        "errors": errors,
        "right": bool(errors) and max(errors.values()) <= LIMITS[bench.dtype],
        "failed": failed,
        "arms": {
            arm: summarize_arm(times, arms, arm) for arm in attempts if f"{arm} forward" in arms
        },
    }


def attempt(make: Callable[[], dict]) -> tuple[dict, str | None]:
    """Make programs and run each once. If that fails, return none, and the reason."""
    try:
        arms = make()
        for run in arms.values():
            jax.block_until_ready(run())
    except UserError as error:
        return {}, str(error)
    except RuntimeError as error:  # also of XLA, and of PyTorch
        if re.search("out of memory|RESOURCE_EXHAUSTED", str(error), re.IGNORECASE):
            return {}, "out of memory"
        return {}, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return arms, None


def grouped_mm_arms(problem: Problem) -> dict[str, Callable]:
    """The layer with PyTorch's grouped product, as transformers writes it."""
    if missing_libraries():
        raise UserError(f"absent: no {' and no '.join(missing_libraries())} here")
    programs, absent, _ = torch_arms(problem, ("grouped_mm",))
    if absent:
        raise UserError("absent: " + "; ".join(absent.values()))
    name = "transformers grouped_mm"
    return {f"torch grouped_mm {which}": programs[f"{name} {which}"] for which in PASSES}


def summarize_arm(times: Times, arms: dict[str, Callable], name: str) -> dict[str, Any]:
    """The figures of one arm: milliseconds, peak memory, ratios to dense and to ragged_dot."""
    found: dict[str, Any] = {}
    for which, key in PASSES.items():
        found[f"{key}_ms"] = times.spread(f"{name} {which}", main_clock())
        for other in ("dense", "ragged_dot"):
            if f"{other} {which}" in arms:
                ratio = times.ratio(f"{name} {which}", f"{other} {which}", main_clock())
                found[f"{key}_to_{other}"] = ratio
    both = arms[f"{name} forward+backward"]
    return found | {"peak_gigabytes": both.peak_bytes / 1e9 if isinstance(both, Arm) else None}


def kernel_errors(problem: Problem) -> dict[str, float]:
    """The errors of ``grouped_feed_forward`` on the device, divided by the largest value. The right
    values are those of ``reference``.
    """
    shape = problem.shape
    T, K, E = shape.tokens, shape.top_k, shape.experts
    logits_TE = jax.random.normal(jax.random.key(2), (T, E))
    weight_TK, expert_TK = jax.lax.top_k(jax.nn.softmax(logits_TE), K)
    params = {n: p for n, p in problem.routed["params"].items() if n.endswith(("EDF", "EFD"))}
    params = {name: p.astype(shape.dtype) for name, p in params.items()}

    @jax.jit
    def run(params: Any, x_TD: jax.Array, weight_TK: jax.Array, dy_TD: jax.Array) -> Any:
        rows = sort_rows(expert_TK, E)
        y_TD, pull = jax.vjp(
            lambda p, x, w: grouped_feed_forward(p, x, w, rows, shape.activation),
            *(params, x_TD, weight_TK),
        )
        return y_TD, *pull(dy_TD)

    x_TD, dy_TD = problem.x_1TD[0], problem.dy_1TD[0]
    y_TD, dparams, dx_TD, dweight_TK = jax.device_get(run(params, x_TD, weight_TK, dy_TD))
    rng = np.random.default_rng(0)
    token_T = rng.choice(T, min(T, TOKENS_CHECKED), replace=False)
    case = reference.Case(*jax.device_get((params, x_TD, expert_TK, weight_TK, dy_TD)))
    by_token = reference.differentiate_tokens(case, token_T)
    got = {"y": y_TD, "dx": dx_TD, "dweight": dweight_TK}
    pairs = {name: [(got[name][token_T], right)] for name, right in by_token.items()}
    gradients = replace(case, params=dparams)
    for expert in range(E):
        unit_F = rng.choice(shape.hidden, min(shape.hidden, UNITS_CHECKED), replace=False)
        here = gradients.matrices(expert, unit_F)
        for (name, right), dw in zip(
            reference.differentiate_units(case, expert, unit_F).items(), here, strict=True
        ):
            pairs.setdefault(name, []).append((dw, right))
    return {name: largest_error(found) for name, found in pairs.items()}


def largest_error(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The largest difference in pairs (got, right), divided by the largest right value; a NaN gives
    NaN.
    """
    away = np.array([np.abs(got.astype(np.float64) - right).max() for got, right in pairs])
    return float(away.max() / max(np.abs(right).max() for _, right in pairs))


def report(result: dict[str, Any]) -> str:
    """A markdown table for each shape."""
    lines = [f"{result['device']}, {result['clock']} time, ms: median (quartiles)", ""]
    for name, found in result["shapes"].items():
        shape, errors = found["shape"], found["errors"]
        verdict = "right" if found["right"] else "**WRONG**"
        worst = ", ".join(f"{what} {error:.1e}" for what, error in errors.items()) or "unknown"
        lines += [
            f"**{name}**: T {shape['tokens']}, D {shape['width']}, F {shape['hidden']},"
            f" E {shape['experts']}, K {shape['top_k']}, {shape['dtype']}",
            "",
            f"{verdict}: differences from float64 over the largest value {worst};"
            f" {result['limit']:.0e} is allowed",
            "",
            "| | forward | to dense | to ragged_dot | forward+backward | to dense"
            " | to ragged_dot | peak GB |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [table_row(arm, figures) for arm, figures in found["arms"].items()]
        lines += [f"| {arm} | {why} | | | | | | |" for arm, why in found["failed"].items()] + [""]
    return "\n".join(lines)


def table_row(arm: str, figures: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [arm]
    for key in PASSES.values():
        ms = figures[f"{key}_ms"]
        cells.append(f"{ms['median']:.2f} ({ms['low']:.2f}-{ms['high']:.2f})")
        for other in ("dense", "ragged_dot"):
            ratio = figures.get(f"{key}_to_{other}")
            cells.append(f"{ratio['median']:.2f}" if ratio else "")
    peak = figures["peak_gigabytes"]
    return f"| {' | '.join([*cells, '' if peak is None else f'{peak:.2f}'])} |"
