"""Time a routed layer beside the dense layer of equal active size, in one run."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from moejax.config.checks import check
from moejax.lab.bench.programs import PASSES, Arm, Problem, dense_arms, make_problem, routed_arms
from moejax.lab.bench.shape import LayerShape
from moejax.lab.bench.timing import Times, TimingSettings, interleave, main_clock


@dataclass(frozen=True, kw_only=True)
class LayerBench(LayerShape, TimingSettings):
    """The layer, and how to time it."""

    skew: float = 0.0
    """The share of all tokens whose first choice is expert 0. Above 0, the balanced load is timed,
    too."""

    def __post_init__(self) -> None:
        LayerShape.__post_init__(self)
        TimingSettings.__post_init__(self)
        check(0 <= self.skew <= 1, f"--skew must lie in [0, 1], not {self.skew}.")


def compile_programs(bench: LayerBench) -> dict[str, Arm]:
    """Compile forward and forward+backward of both layers."""
    problem = make_problem(bench)
    arms = dense_arms(problem)
    if bench.skew:
        arms |= routed_arms("balanced", problem, bench)
        problem = send_to_first_expert(problem, bench.skew)
    return arms | routed_arms("routed", problem, bench)


def send_to_first_expert(problem: Problem, share: float) -> Problem:
    """Make a share of the tokens choose expert 0 first, by a feature that only this expert sees."""
    x_1TD, params = problem.x_1TD, problem.routed["params"]
    T = x_1TD.shape[1]
    first_T = jnp.where(jnp.arange(T) < share * T, 1.0, -1.0).astype(x_1TD.dtype)
    # In random order: neighbours in a text do not all share one expert.
    first_T = jax.random.permutation(jax.random.key(1), first_T)
    w_DE = params["w_router_DE"].at[0].set(0).at[0, 0].set(100.0)
    return replace(
        problem,
        x_1TD=x_1TD.at[0, :, 0].set(first_T),
        routed={"params": params | {"w_router_DE": w_DE}},
    )


def measure(bench: LayerBench) -> dict[str, Any]:
    """Time all programs in one run; the object that ``--json`` prints."""
    bench.prepare_memory()
    arms = compile_programs(bench)
    times = interleave(dict(arms), bench.rounds)
    result: dict[str, Any] = {"shape": asdict(bench), "backend": jax.default_backend()}
    for name, key in PASSES.items():
        result |= ratios(times, f"routed {name}", f"dense {name}", key)
        result[f"{key}_dense_ms"] = times.milliseconds(f"dense {name}")
        if bench.skew:
            result |= ratios(times, f"routed {name}", f"balanced {name}", f"{key}_skew")
    both = [arms[f"{kind} forward+backward"] for kind in ("routed", "dense")]
    result["temporary_memory_ratio"] = both[0].temporary_bytes / max(1, both[1].temporary_bytes)
    result["temporary_megabytes"] = [arm.temporary_bytes / 1e6 for arm in both]
    result["compile_seconds"] = both[0].compile_seconds
    result["rounds"] = bench.rounds
    return result


def ratios(times: Times, arm: str, to: str, key: str) -> dict[str, Any]:
    """Ratios by the main clock (the plain key), with quartiles, and by the other clock."""
    clock = main_clock()
    other = "wall" if clock == "cpu" else "cpu"
    main = times.ratio(arm, to, clock)
    return {
        f"{key}_ratio": main["median"],
        f"{key}_ratio_quartiles": [main["low"], main["high"]],
        f"{key}_{other}_ratio": times.ratio(arm, to, other)["median"],
    }


def report(result: dict[str, Any]) -> str:
    """The figures, line by line."""
    lines = {}
    for name, key in PASSES.items():
        low, high = result[f"{key}_ratio_quartiles"]
        lines[f"{name} over dense"] = (
            f"{result[f'{key}_ratio']:.2f} (quartiles {low:.2f} to {high:.2f};"
            f" dense {result[f'{key}_dense_ms']:.1f} ms)"
        )
        if f"{key}_skew_ratio" in result:
            lines[f"{name} over balanced"] = f"{result[f'{key}_skew_ratio']:.2f}"
    lines |= {
        "temporary memory": f"{result['temporary_memory_ratio']:.2f} of dense",
        "compiled in": f"{result['compile_seconds']:.1f} s",
        "timed on": f"{result['backend']}, {result['rounds']} rounds",
    }
    return "\n".join(f"{name:<32}{value}" for name, value in lines.items())
