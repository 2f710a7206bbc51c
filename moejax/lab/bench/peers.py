"""The work of one routed layer in others' code, in one run: Hugging Face, PyTorch, plain JAX.

All have the same weights and the same input, and are timed only once their outputs and the
gradients of the input agree.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Literal

import jax
import jax.numpy as jnp

from moejax.config.checks import check
from moejax.config.errors import UserError
from moejax.lab.bench.agreement import agreements
from moejax.lab.bench.programs import (
    PASSES,
    Problem,
    compile_both,
    dense_arms,
    make_problem,
    routed_arms,
    whole_products,
)
from moejax.lab.bench.shape import LayerShape
from moejax.lab.bench.timing import Times, interleave, main_clock
from moejax.moe.layer import exact
from moejax.runtime.allocator import keep_freed_memory

MOST_COPIED_BYTES = 1e9
"""Of weights: an implementation that copies more is left out."""

Implementation = Literal["eager", "grouped_mm", "batched_mm"]
Programs = dict[str, Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class PeersBench(LayerShape):
    """The layer, and whom it is compared with."""

    dispatch: Literal["auto", "einsum", "gather", "grouped"] = "grouped"
    """The form of dispatch of our layer."""
    implementations: tuple[Implementation, ...] = ("eager", "grouped_mm", "batched_mm")
    """Forms of Mixtral's experts in transformers. Those that it has beside them fetch kernels."""
    ragged_dot: bool = False
    """Also time the layer by jax.lax.ragged_dot: on CPUs it takes 8 to 80 times as long."""
    rounds: int = 9
    """Timed rounds."""
    keep_memory: bool = False
    """Keep freed memory, as train.py does, instead of giving it back to the system."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.activation == "swiglu",
            f"--activation must be swiglu, that of Mixtral's experts, not {self.activation}.",
        )
        check(
            self.router in ("top_k", "mixtral"),
            f"--router must be top_k or mixtral, a softmax over the chosen, not {self.router}.",
        )
        check(self.rounds > 0, f"--rounds must be greater than 0, not {self.rounds}.")


def measure(bench: PeersBench) -> dict[str, Any]:
    """Compare, then time all in one run; the object that ``--json`` prints."""
    if missing():
        raise UserError(
            f"comparing with other libraries needs {' and '.join(missing())}:"
            " pip install -e '.[peers]'"
        )
    if bench.keep_memory:
        keep_freed_memory()
    with whole_products(bench.dtype):
        return compared(bench)


def compared(bench: PeersBench) -> dict[str, Any]:
    """See ``measure``."""
    problem = make_problem(bench)
    arms: Programs = routed_arms("ours", problem, bench) | dense_arms(problem)
    if bench.ragged_dot:
        arms |= ragged_dot_arms(problem)
    others, absent, threads = torch_arms(problem, bench.implementations)
    arms |= others
    agreement = agreements(problem, arms)
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
        "arms": {name: figures(times, name) for name in names},
        **best_peer(times, [name for name in names if is_peer(name)]),
    }


def missing() -> list[str]:
    """Which of the other libraries are not installed."""
    return [n for n in ("torch", "transformers") if importlib.util.find_spec(n) is None]


def is_peer(name: str) -> bool:
    """Whether an arm is the routed layer in others' code."""
    return name == "ragged_dot" or name.startswith("transformers")


def ragged_dot_arms(problem: Problem) -> Programs:
    """The routed layer by ``jax.lax.ragged_dot``, compiled."""
    apply = partial(ragged_dot_layer, top_k=problem.shape.top_k)
    return compile_both("ragged_dot", apply, problem.routed, problem)


def ragged_dot_layer(params: Any, x_1TD: jax.Array, *, top_k: int) -> jax.Array:
    """A softmax top-k router and SwiGLU experts, as one writes them on ``jax.lax.ragged_dot``:
    ``y_1TD``. Parameters are those of ``MoELayer``.
    """
    p = {name: value.astype(x_1TD.dtype) for name, value in params["params"].items()}
    x_TD = x_1TD[0]
    logits_TE = exact(x_TD.astype(jnp.float32), params["params"]["w_router_DE"])
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
    """PyTorch's programs with our weights; which are absent, and why; and PyTorch's threads."""
    # Before PyTorch starts: its waiting threads would spin, and a busy machine multiplies that.
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
    layers = torch_layers.mixtral(problem, names)
    layers["torch dense"] = torch_layers.dense(problem)
    programs = {}
    for name, layer in layers.items():
        programs |= torch_layers.both(name, layer, problem)
    return programs, absent, threads


def figures(times: Times, name: str) -> dict[str, Any]:
    """Milliseconds of an arm, by CPU and by wall."""
    return {
        key: {f"{clock}_ms": times.spread(f"{name} {which}", clock) for clock in ("cpu", "wall")}
        for which, key in PASSES.items()
    }


def best_peer(times: Times, peers: list[str]) -> dict[str, Any]:
    """Whose forward+backward is fastest, and how many times as long as ours it takes."""
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
    """A table, and the ratio to the best of the others."""
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
