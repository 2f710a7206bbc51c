"""A routed layer against the dense layer of equal active size, timed in one run."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from moejax.config.checks import check
from moejax.lab.bench.programs import PASSES, Arm, Problem, dense_arms, make_problem, routed_arms
from moejax.lab.bench.shape import LayerShape
from moejax.lab.bench.timing import Times, interleave, main_clock
from moejax.runtime.allocator import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class LayerBench(LayerShape):
    """The layer, and how long to look."""

    skew: float = 0.0
    """This share of all tokens has expert 0 for its first choice; above 0, the balanced load is
    timed, too."""
    rounds: int = 9
    """Timed rounds."""
    keep_memory: bool = False
    """Keep freed memory, as train.py does, instead of giving it back to the system."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.skew <= 1, f"--skew must lie in [0, 1], not {self.skew}.")
        check(self.rounds > 0, f"--rounds must be greater than 0, not {self.rounds}.")


def programs(bench: LayerBench) -> dict[str, Arm]:
    """Forward and forward+backward of both layers, compiled."""
    problem = make_problem(bench)
    arms = dense_arms(problem)
    if bench.skew:
        arms |= routed_arms("balanced", problem, bench)
        problem = skewed(problem, bench.skew)
    return arms | routed_arms("routed", problem, bench)


def skewed(problem: Problem, share: float) -> Problem:
    """Make a share of the tokens choose expert 0 first, by one feature that only it sees."""
    x_1TD, params = problem.x_1TD, problem.routed["params"]
    T = x_1TD.shape[1]
    first_T = jnp.where(jnp.arange(T) < share * T, 1.0, -1.0).astype(x_1TD.dtype)
    # Mixed up, as neighbours in a text do not share all their experts.
    first_T = jax.random.permutation(jax.random.key(1), first_T)
    w_DE = params["w_router_DE"].at[0].set(0).at[0, 0].set(100.0)
    return replace(
        problem,
        x_1TD=x_1TD.at[0, :, 0].set(first_T),
        routed={"params": params | {"w_router_DE": w_DE}},
    )


def measure(bench: LayerBench) -> dict[str, Any]:
    """Time all programs in one run; the object that ``--json`` prints."""
    if bench.keep_memory:
        keep_freed_memory()
    arms = programs(bench)
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
    """Ratios by CPU time (the plain key) and by wall time, with their spread."""
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
