"""Compile the programs that are timed: forward and forward+backward of a layer."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from moejax.lab.bench.shape import LayerShape
from moejax.moe.experts import matrices
from moejax.moe.layer import FeedForward, MoELayer
from moejax.runtime.room import check_room

PASSES = {"forward": "forward", "forward+backward": "forward_backward"}
"""The passes that are timed of each layer, and their keys in JSON."""


@dataclass(frozen=True)
class Problem:
    """The input and the parameters that all arms of a comparison share."""

    shape: LayerShape
    x_1TD: jax.Array
    """The input."""
    dy_1TD: jax.Array
    """The gradient of the output."""
    routed: Any
    """Parameters of the routed layer, the same for every form of dispatch."""
    dense: Any
    """Parameters of the dense layer of equal active size."""


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
        """Memory for all but inputs and outputs."""
        return self.compiled.memory_analysis().temp_size_in_bytes

    @property
    def peak_bytes(self) -> int:
        """Memory at the peak, inputs and outputs included, as the compiler plans it."""
        return self.compiled.memory_analysis().peak_memory_in_bytes


def full_precision(dtype: str) -> AbstractContextManager:
    """A context in which float32 products have full precision, as in PyTorch, also on GPUs."""
    return jax.default_matmul_precision("highest") if dtype == "float32" else nullcontext()


def make_problem(shape: LayerShape) -> Problem:
    """A problem of random numbers, the same for equal shapes."""
    T, D = shape.tokens, shape.width
    check_layer_room(shape)
    keys = jax.random.split(jax.random.key(0), 3)
    x_1TD, dy_1TD = (jax.random.normal(k, (1, T, D), jnp.dtype(shape.dtype)) for k in keys[:2])
    routed, dense = MoELayer(shape.moe(), shape.activation), dense_layer(shape)
    real_1T = jnp.ones((1, T), bool)
    routed = jax.jit(lambda x: routed.init(keys[2], x, real_1T, training=True))(x_1TD)
    return Problem(shape, x_1TD, dy_1TD, routed, jax.jit(dense.init)(keys[2], x_1TD))


def check_layer_room(shape: LayerShape) -> None:
    """Raise ``ConfigError`` if the parameters of both layers, the input and the gradient of the
    output cannot lie in memory together.
    """
    D, itemsize = shape.width, jnp.dtype(shape.dtype).itemsize
    numbers = (shape.experts + shape.top_k) * len(matrices(shape.activation)) * D * shape.hidden
    need = 4 * numbers + 2 * itemsize * shape.tokens * D
    advice = "Make --tokens, --experts, --width or --hidden smaller."
    check_room(float(need), "the layer, with its input,", advice)


def dense_layer(shape: LayerShape) -> FeedForward:
    """The dense layer of equal active size."""
    return FeedForward(shape.top_k * shape.hidden, shape.activation)


def dense_arms(problem: Problem) -> dict[str, Arm]:
    """Compile the dense layer."""
    return compile_both("dense", dense_layer(problem.shape).apply, problem.dense, problem)


def routed_arms(name: str, problem: Problem, shape: LayerShape) -> dict[str, Arm]:
    """Compile the routed layer, with the dispatch that ``shape`` names."""
    layer = MoELayer(shape.moe(), shape.activation)

    def apply(params: Any, x_1TD: jax.Array) -> jax.Array:
        return layer.apply(params, x_1TD, jnp.ones(x_1TD.shape[:2], bool), training=True)[0]

    return compile_both(name, apply, problem.routed, problem)


def compile_both(name: str, apply: Callable, params: Any, problem: Problem) -> dict[str, Arm]:
    """Compile forward and forward+backward of ``apply(params, x_1TD)``. The gradient is that of all
    parameters and of the input: ``y_1TD, (dparams, dx_1TD)``.
    """

    def gradient(params: Any, x_1TD: jax.Array, dy_1TD: jax.Array) -> Any:
        y_1TD, pull = jax.vjp(apply, params, x_1TD)
        return y_1TD, pull(dy_1TD)

    inputs = (params, problem.x_1TD)
    return {
        f"{name} forward": compile_arm(apply, inputs),
        f"{name} forward+backward": compile_arm(gradient, (*inputs, problem.dy_1TD)),
    }


def compile_arm(function: Callable, inputs: tuple) -> Arm:
    """Compile for these inputs, and time the compilation."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*inputs).compile()
    return Arm(compiled, inputs, time.perf_counter() - start)
