"""A routed layer against the dense layer of equal active size, timed in one run."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from moejax.allocator import keep_freed_memory
from moejax.bench.timing import Times, interleave, main_clock
from moejax.config import MoEConfig
from moejax.config.checks import check
from moejax.layer import FeedForward, MoELayer


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A routed layer and its input."""

    tokens: int = 8192
    """Tokens (T)."""
    experts: int = 8
    """Experts (E)."""
    top_k: int = 2
    """Experts a token chooses (K)."""
    width: int = 512
    """Width (D)."""
    hidden: int = 1024
    """Hidden width of an expert (F); the dense layer has K * F."""
    activation: Literal["swiglu", "geglu", "gelu", "relu"] = "swiglu"
    """The feed-forward function."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations and products."""
    router: str = "top_k"
    """The router."""
    dispatch: Literal["auto", "einsum", "gather", "grouped"] = "auto"
    """The form of dispatch."""
    group_size: int | None = None
    """Tokens that compete for slots together; by default 256, or all if nothing is dropped."""
    capacity_factor: float | None = None
    """Slots over the fair share; None drops nothing (and is 1.25 for einsum and gather)."""

    def __post_init__(self) -> None:
        for name in ("tokens", "experts", "top_k", "width", "hidden"):
            value = getattr(self, name)
            check(value > 0, f"--{name.replace('_', '-')} must be greater than 0, not {value}.")
        check(
            self.tokens % self.group == 0,
            f"--group-size {self.group} does not divide --tokens {self.tokens}.",
        )
        self.moe()

    @property
    def slots(self) -> float | None:
        """The capacity factor in force."""
        if self.capacity_factor is None and self.dispatch in ("einsum", "gather"):
            return 1.25
        return self.capacity_factor

    @property
    def group(self) -> int:
        """The group size in force."""
        return self.group_size or (self.tokens if self.slots is None else min(256, self.tokens))

    def moe(self) -> MoEConfig:
        """The settings of the routed layer."""
        return MoEConfig(
            num_experts=self.experts,
            top_k=self.top_k,
            hidden_size=self.hidden,
            router=self.router,
            dispatch=self.dispatch,
            group_size=self.group,
            capacity_factor=self.slots,
        )


@dataclass(frozen=True, kw_only=True)
class LayerBench(LayerShape):
    """The layer, and how long to look."""

    skew: float = 0.0
    """This share of all tokens has expert 0 for its first choice."""
    rounds: int = 9
    """Timed rounds."""
    keep_memory: bool = False
    """Keep freed memory, as train.py does, instead of giving it back to the system."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.skew <= 1, f"--skew must lie in [0, 1], not {self.skew}.")
        check(self.rounds > 0, f"--rounds must be greater than 0, not {self.rounds}.")


@dataclass(frozen=True)
class Arm:
    """One compiled program and its inputs."""

    compiled: Any
    inputs: tuple
    compile_seconds: float

    def __call__(self) -> Any:
        return self.compiled(*self.inputs)

    @property
    def temporary_bytes(self) -> int:
        """Memory beside inputs and outputs."""
        return self.compiled.memory_analysis().temp_size_in_bytes


def programs(bench: LayerBench) -> dict[str, Arm]:
    """Forward and forward+backward of both layers, compiled."""
    x_1TD, dy_1TD = inputs(bench)
    params = routed_params(bench, x_1TD)
    if bench.skew:
        x_1TD, params = skewed(x_1TD, params, bench.skew)
    return dense_arms(bench, x_1TD, dy_1TD) | compile_both(
        "routed", routed_apply(bench), params, x_1TD, dy_1TD
    )


def inputs(bench: LayerShape) -> tuple[jax.Array, jax.Array]:
    """The layer's input and the gradient of its output: ``x_1TD``, ``dy_1TD``."""
    shape = (1, bench.tokens, bench.width)
    x_key, dy_key = jax.random.split(jax.random.key(0))
    dtype = jnp.dtype(bench.dtype)
    return jax.random.normal(x_key, shape, dtype), jax.random.normal(dy_key, shape, dtype)


def routed_apply(bench: LayerShape) -> Callable:
    """``(params, x_1TD) -> y_1TD`` of the routed layer."""
    layer = MoELayer(bench.moe(), bench.activation)

    def apply(params: Any, x_1TD: jax.Array) -> jax.Array:
        return layer.apply(params, x_1TD, jnp.ones(x_1TD.shape[:2], bool), training=True)[0]

    return apply


def routed_params(bench: LayerShape, x_1TD: jax.Array) -> Any:
    """The parameters of the routed layer, in whatever form of dispatch."""
    layer, real_1T = MoELayer(bench.moe(), bench.activation), jnp.ones(x_1TD.shape[:2], bool)
    return jax.jit(lambda x: layer.init(jax.random.key(1), x, real_1T, training=True))(x_1TD)


def dense_arms(bench: LayerShape, x_1TD: jax.Array, dy_1TD: jax.Array) -> dict[str, Arm]:
    """The dense layer of equal active size, compiled."""
    layer = FeedForward(bench.top_k * bench.hidden, bench.activation)
    params = jax.jit(layer.init)(jax.random.key(1), x_1TD)
    return compile_both("dense", layer.apply, params, x_1TD, dy_1TD)


def compile_both(
    name: str, apply: Callable, params: Any, x_1TD: jax.Array, dy_1TD: jax.Array
) -> dict[str, Arm]:
    """Forward and forward+backward of ``apply(params, x_1TD)``, compiled. The gradient is that of
    all parameters and of the input.
    """

    def gradient(params: Any, x_1TD: jax.Array, dy_1TD: jax.Array) -> Any:
        y_1TD, pull = jax.vjp(apply, params, x_1TD)
        return y_1TD, pull(dy_1TD)

    return {
        f"{name} forward": compile_arm(apply, (params, x_1TD)),
        f"{name} forward+backward": compile_arm(gradient, (params, x_1TD, dy_1TD)),
    }


def compile_arm(function: Any, inputs: tuple) -> Arm:
    """Compile for these inputs, and time that."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*inputs).compile()
    return Arm(compiled, inputs, time.perf_counter() - start)


def skewed(x_1TD: jax.Array, params: Any, share: float) -> tuple[jax.Array, Any]:
    """Make a share of the tokens choose expert 0 first, by one feature that only it sees."""
    T = x_1TD.shape[1]
    first_T = jnp.where(jnp.arange(T) < share * T, 1.0, -1.0).astype(x_1TD.dtype)
    # Mixed up, as neighbours in a text do not share all their experts.
    first_T = jax.random.permutation(jax.random.key(1), first_T)
    w_DE = params["params"]["w_router_DE"].at[0].set(0).at[0, 0].set(100.0)
    return x_1TD.at[0, :, 0].set(first_T), {"params": params["params"] | {"w_router_DE": w_DE}}


def measure(bench: LayerBench) -> dict[str, Any]:
    """Time all programs in one run; the object that ``--json`` prints."""
    if bench.keep_memory:
        keep_freed_memory()
    arms = programs(bench)
    times = interleave(dict(arms), bench.rounds)
    result: dict[str, Any] = {"shape": asdict(bench), "backend": jax.default_backend()}
    for name, key in (("forward", "forward"), ("forward+backward", "forward_backward")):
        result |= ratios(times, f"routed {name}", f"dense {name}", key)
        result[f"{key}_dense_ms"] = times.milliseconds(f"dense {name}")
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
    for name, key in (("forward", "forward"), ("forward+backward", "forward_backward")):
        low, high = result[f"{key}_ratio_quartiles"]
        lines[f"{name} over dense"] = (
            f"{result[f'{key}_ratio']:.2f} (quartiles {low:.2f} to {high:.2f};"
            f" dense {result[f'{key}_dense_ms']:.1f} ms)"
        )
    lines |= {
        "temporary memory": f"{result['temporary_memory_ratio']:.2f} of dense",
        "compiled in": f"{result['compile_seconds']:.1f} s",
        "timed on": f"{result['backend']}, {result['rounds']} rounds",
    }
    return "\n".join(f"{name:<28}{value}" for name, value in lines.items())
