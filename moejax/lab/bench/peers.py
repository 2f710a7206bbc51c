"""Time one routed layer in several libraries, in one run: ours, Hugging Face, PyTorch, plain JAX.

All have the same weights and the same input. They are timed only if their outputs and the gradients
of the input agree.
"""

import importlib.util
import os
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Literal

import jax
import jax.numpy as jnp

from moejax.config.checks import check
from moejax.config.errors import UserError
from moejax.lab.bench.agreement import check_agreement
from moejax.lab.bench.programs import (
    PASSES,
    Problem,
    compile_both,
    dense_arms,
    full_precision,
    make_problem,
    routed_arms,
)
from moejax.lab.bench.shape import LayerShape
from moejax.lab.bench.timing import Times, TimingSettings, interleave, main_clock
from moejax.moe.scores import multiply_exactly

MOST_COPIED_BYTES = 1e9
"""An implementation that copies more bytes of weights than this is left out."""

Implementation = Literal["eager", "grouped_mm", "batched_mm"]
Programs = dict[str, Any]
"""Programs to time, by name; called without arguments."""


@dataclass(frozen=True, kw_only=True)
class PeersBench(LayerShape, TimingSettings):
    """The layer, and what it is compared with."""

    dispatch: Literal["auto", "einsum", "gather", "grouped"] = "grouped"
    """The form of dispatch of our layer."""
    implementations: tuple[Implementation, ...] = ("eager", "grouped_mm", "batched_mm")
    """Forms of Mixtral's experts in transformers. Its other forms download kernels."""
    ragged_dot: bool = False
    """Also time the layer by jax.lax.ragged_dot, which takes 8 to 80 times as long on CPUs."""

    def __post_init__(self) -> None:
        LayerShape.__post_init__(self)
        TimingSettings.__post_init__(self)
        check(
            self.activation == "swiglu",
            f"--activation must be swiglu, that of Mixtral's experts, not {self.activation}.",
        )
        check(
            self.router in ("top_k", "mixtral"),
            f"--router must be top_k or mixtral, a softmax over the chosen, not {self.router}.",
        )


def measure(bench: PeersBench) -> dict[str, Any]:
    """Check that all agree, then time them in one run. Returns the object of ``--json``."""
    check_libraries("comparing with other libraries")
    bench.prepare_memory()
    with full_precision(bench.dtype):
        return compare_layers(bench)


def compare_layers(bench: PeersBench) -> dict[str, Any]:
    """Check and time, in the settings that are in force now."""
    problem = make_problem(bench)
    arms: Programs = routed_arms("ours", problem, bench) | dense_arms(problem)
    if bench.ragged_dot:
        arms |= ragged_dot_arms(problem)
    others, absent, threads = torch_arms(problem, bench.implementations)
    arms |= others
    agreement = check_agreement(problem, arms)
    times = interleave(arms, bench.rounds)
    names = [name.removesuffix(" forward") for name in arms if name.endswith(" forward")]
    return {
        "shape": asdict(bench),
        "backend": jax.default_backend(),
        "versions": {name: version(name) for name in ("jax", "torch", "transformers")},
        "torch_threads": threads,
        "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
        "rounds": bench.rounds,
        "agreement": agreement,
        "absent": absent,
        "clock": main_clock(),
        "arms": {name: summarize_arm(times, name) for name in names},
        **best_peer(times, [name for name in names if is_peer(name)]),
    }


def check_libraries(what: str) -> None:
    """Raise ``UserError`` if a library is not installed that ``what`` needs."""
    if missing := missing_libraries():
        raise UserError(f"{what} needs {' and '.join(missing)}: pip install -e '.[peers]'")


def missing_libraries() -> list[str]:
    """Which of the other libraries are not installed."""
    return [n for n in ("torch", "transformers") if importlib.util.find_spec(n) is None]


def is_peer(name: str) -> bool:
    """Whether an arm is the routed layer in the code of another library."""
    return name == "ragged_dot" or name.startswith("transformers")


def ragged_dot_arms(problem: Problem) -> Programs:
    """Compile the routed layer written with ``jax.lax.ragged_dot``."""
    apply = partial(ragged_dot_layer, top_k=problem.shape.top_k)
    return compile_both("ragged_dot", apply, problem.routed, problem)


def ragged_dot_layer(params: Any, x_1TD: jax.Array, *, top_k: int) -> jax.Array:
    """A softmax top-k router and SwiGLU experts, written with ``jax.lax.ragged_dot``: ``y_1TD``.
    The parameters are those of ``MoELayer``.
    """
    p = {name: value.astype(x_1TD.dtype) for name, value in params["params"].items()}
    x_TD = x_1TD[0]
    logits_TE = multiply_exactly(x_TD.astype(jnp.float32), params["params"]["w_router_DE"])
    weight_TK, expert_TK = jax.lax.top_k(jax.nn.softmax(logits_TE), top_k)
    weight_TK /= weight_TK.sum(-1, keepdims=True)

    order_R = jnp.argsort(expert_TK.reshape(-1))
    size_E = jnp.bincount(expert_TK.reshape(-1), length=logits_TE.shape[-1]).astype(jnp.int32)
    x_RD = x_TD[order_R // top_k]
    h_RF = jax.nn.silu(jax.lax.ragged_dot(x_RD, p["w_gate_EDF"], size_E))
    h_RF *= jax.lax.ragged_dot(x_RD, p["w_up_EDF"], size_E)
    y_RD = jax.lax.ragged_dot(h_RF, p["w_down_EFD"], size_E)
    y_TKD = y_RD[jnp.argsort(order_R)].reshape(*expert_TK.shape, -1)
    return jnp.einsum("TK,TKD->TD", weight_TK.astype(y_TKD.dtype), y_TKD)[None]


def torch_arms(
    problem: Problem, implementations: tuple[Implementation, ...]
) -> tuple[Programs, dict[str, str], int]:
    """The programs of PyTorch with our weights; those that are absent, with the reason; and how
    many threads PyTorch has.
    """
    # Before PyTorch starts: its waiting threads would spin, which costs most on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from moejax.lab.bench import torch_layers

    if not torch_layers.has_device():
        why = f"JAX runs on a {jax.default_backend()}, and PyTorch has none here"
        return {}, {"torch, transformers": why}, 0
    shape, absent = problem.shape, {}
    copied = 3 * shape.tokens * shape.top_k * shape.width * shape.hidden
    copied *= jnp.dtype(shape.dtype).itemsize
    if "batched_mm" in implementations and copied > MOST_COPIED_BYTES:
        why = f"copies an expert's weights for every choice, here {copied / 1e9:.1f} GB"
        absent["transformers batched_mm"] = why
    names = tuple(n for n in implementations if f"transformers {n}" not in absent)
    threads = torch_layers.use_all_cores()
    layers = torch_layers.build_mixtral(problem, names)
    layers["torch dense"] = torch_layers.build_dense(problem)
    programs: Programs = {}
    for name, layer in layers.items():
        programs |= torch_layers.make_programs(name, layer, problem)
    return programs, absent, threads


def summarize_arm(times: Times, name: str) -> dict[str, Any]:
    """The milliseconds of an arm, by CPU time and by wall time."""
    return {
        key: {f"{clock}_ms": times.spread(f"{name} {which}", clock) for clock in ("cpu", "wall")}
        for which, key in PASSES.items()
    }


def best_peer(times: Times, peers: list[str]) -> dict[str, Any]:
    """The peer with the fastest forward+backward, and its time divided by ours."""
    if not peers:
        return {"best_peer": None}
    clock = main_clock()
    best = min(peers, key=lambda name: times.milliseconds(f"{name} forward+backward", clock))
    ratios = {
        c: {
            key: times.ratio(f"{best} {which}", f"ours {which}", c) for which, key in PASSES.items()
        }
        for c in ("cpu", "wall")
    }
    other = "wall" if clock == "cpu" else "cpu"
    return {"best_peer": best, "peer_ratio": ratios[clock], f"peer_{other}_ratio": ratios[other]}


def report(result: dict[str, Any]) -> str:
    """A table of all arms, and the ratio of the best peer to ours."""
    clock = result["clock"]
    lines = [f"{'ms, ' + clock + ' time':<26}{'forward':>24}{'forward+backward':>24}"]
    for name, arm in result["arms"].items():
        cells = [arm[key][f"{clock}_ms"] for key in PASSES.values()]
        texts = [f"{c['median']:.1f} ({c['low']:.1f}-{c['high']:.1f})" for c in cells]
        lines.append(f"{name:<26}" + "".join(f"{text:>24}" for text in texts))
    lines += [f"{name:<26}{why}" for name, why in result["absent"].items()]
    if result["best_peer"]:
        ratios = [result["peer_ratio"][key] for key in PASSES.values()]
        texts = [f"{r['median']:.2f} ({r['low']:.2f}-{r['high']:.2f})" for r in ratios]
        lines.append(f"{result['best_peer'] + ' / ours':<26}" + "".join(f"{t:>24}" for t in texts))
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    compared = result["agreement"]["compared_share"]
    lines += [
        f"values agree to {result['agreement']['limit']:.0e}, on {compared:.1%} of the tokens",
        f"{result['backend']}, {result['rounds']} rounds, median (quartiles);"
        f" {result['torch_threads']} threads for PyTorch"
        f" (OMP_WAIT_POLICY={result['omp_wait_policy']}); {versions}",
    ]
    return "\n".join(lines)
