"""Compile a routed layer for TPUs, forward and backward, and read what it costs; no TPU is needed.

Arithmetic, memory and collectives are read from the program; only a real TPU can tell its time. The
compiler does not know how many tiles a grouped product visits, nor how many bytes that moves. Both
are counted here, for experts of the sizes that uniform random routing gives.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from moejax.config.checks import check
from moejax.config.errors import UserError
from moejax.lab.bench.shape import LayerShape
from moejax.moe import experts
from moejax.moe.kernels.megablox import Tile, Work, choose_tile
from moejax.moe.layer import MoELayer
from moejax.runtime import device_mesh, partition, targets


@dataclass(frozen=True, kw_only=True)
class CompiledBench(LayerShape):
    """A routed layer, and the machine that it is compiled for."""

    target: str = "v5e:2x2"
    """TPU chips and how they are laid out, such as v4:2x2x1, v5e:2x2, v5p:2x2x1, v6e:4x4."""
    data: int = 1
    """Devices on the data axis of the mesh; tokens are spread evenly over all devices."""
    expert: int = 1
    """Devices on the expert axis of the mesh."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the activations and products; parameters are float32."""
    dispatch: Literal["auto", "einsum", "gather", "grouped"] = "grouped"
    """The form of dispatch."""

    def __post_init__(self) -> None:
        for name in ("data", "expert"):
            value = getattr(self, name)
            check(value > 0, f"--{name} must be greater than 0, not {value}.")
        check(
            self.tokens % self.devices == 0,
            f"--tokens {self.tokens} cannot be spread over {self.devices} devices.",
        )
        super().__post_init__()

    @property
    def devices(self) -> int:
        """Number of devices in use."""
        return self.data * self.expert

    @property
    def group(self) -> int:
        """The group size in force: no group lies on two devices."""
        tokens = self.tokens // self.devices
        return self.group_size or (tokens if self.slots is None else min(256, tokens))


@dataclass(frozen=True)
class Kernel:
    """A grouped product in a compiled program."""

    work: Work
    tile: Tile
    visits: int
    """How often tiles of rows are visited."""
    declared_flops: int
    """What the compiler counts, as if every row were visited once."""
    declared_bytes: int

    @property
    def flops(self) -> int:
        """The FLOPs that it really computes."""
        return self.work.flops(self.tile, self.visits)

    @property
    def bytes(self) -> int:
        """The bytes that it really moves."""
        return self.work.bytes(self.tile, self.visits)


def measure(bench: CompiledBench) -> dict[str, Any]:
    """Compile, and read the figures of one device. Returns the object that ``--json`` prints."""
    start = time.perf_counter()
    compiled = compile_layer(bench)
    seconds = time.perf_counter() - start
    text, cost = compiled.as_text(), compiled.cost_analysis()
    kernels = list(find_kernels(text, random_sizes(bench)))
    products = 3 * len(experts.matrices(bench.activation))  # each with its two gradients
    ideal = 2 * products * bench.tokens // bench.devices * bench.top_k * bench.width * bench.hidden
    flops = cost["flops"] + sum(k.flops - k.declared_flops for k in kernels)
    moved = cost["bytes accessed"] + sum(k.bytes - k.declared_bytes for k in kernels)
    return {
        "shape": asdict(bench),
        "ideal_flops": ideal,
        "flops_ratio": flops / ideal,
        "visited_flops_ratio": sum(k.flops for k in kernels) / ideal,
        "recomputed_ratio": max(0, len(kernels) / products - 1),
        "gigabytes_accessed": moved / 1e9,
        "gigabytes_of_products": sum(k.bytes for k in kernels) / 1e9,
        "peak_gigabytes": compiled.memory_analysis().peak_memory_in_bytes / 1e9,
        "collectives": targets.count_collectives(text),
        "kernels": [asdict(k.work) | {"tile": k.tile, "visits": k.visits} for k in kernels],
        "compile_seconds": seconds,
    }


def compile_layer(bench: CompiledBench) -> Any:
    """Compile the layer, forward and backward, with the gradients of parameters and input."""
    layer = MoELayer(bench.moe(), bench.activation)
    shape = (bench.devices, bench.tokens // bench.devices)

    def gradient(params: Any, x_BND: jax.Array, dy_BND: jax.Array) -> Any:
        real_BN = jnp.ones(shape, bool)
        y_BND, pull = jax.vjp(
            lambda params, x: layer.apply(params, x, real_BN, training=True)[0], params, x_BND
        )
        return y_BND, pull(dy_BND)

    def init(x_BND: jax.Array) -> Any:
        return layer.init(jax.random.key(0), x_BND, jnp.ones(shape, bool), training=True)

    grid = target_mesh(bench)
    x_BND = jax.ShapeDtypeStruct(
        (*shape, bench.width),
        jnp.dtype(bench.dtype),
        sharding=partition.activation_sharding(grid, "batch_BN"),
    )
    with jax.set_mesh(grid):
        params = jax.eval_shape(init, x_BND)
        params = partition.set_shardings(params, partition.tree_shardings(grid, params))
        lowered = jax.jit(gradient).trace(params, x_BND, x_BND).lower(lowering_platforms=("tpu",))
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"the compiler for {bench.target} says: {error}") from error


def target_mesh(bench: CompiledBench) -> Mesh:
    """A mesh of described TPUs. Raises ``UserError`` if there is no compiler or no such TPU."""
    devices = np.array(targets.describe_devices(bench.target))
    if bench.devices > devices.size:
        raise UserError(
            f"--data {bench.data} x --expert {bench.expert} needs {bench.devices} devices, but"
            f" {bench.target} has {devices.size}."
        )
    grid = devices.reshape(-1)[: bench.devices].reshape(bench.data, 1, bench.expert, 1)
    return Mesh(grid, device_mesh.AXES, axis_types=(AxisType.Auto,) * len(device_mesh.AXES))


def find_kernels(text: str, size_E: np.ndarray) -> Iterator[Kernel]:
    """The grouped products in the text of a compiled program, for experts of these sizes."""
    calls = re.findall(
        r'= (\w+\[[\d,]+\])[^\n]*"tpu_custom_call", operand_layout_constraints=\{(.*?\})\}'
        r'[^\n]*jit\((t?)gmm\)[^\n]*"cost_estimate":\{"flops":"(\d+)"[^}]*"bytes_accessed":"(\d+)"',
        text,
    )
    for made, operands, transposed, flops, moved in calls:
        arrays = [
            targets.array_dims(array)
            for array in re.findall(r"\w+\[[\d,]*\]", f"{operands} {made}")
        ]
        (R, D), other, result = arrays[-3:]
        E, F = (result if transposed else other)[0], result[-1]
        work = Work(R, D, F, E, 2 if made.startswith("bf16") else 4, gradient=bool(transposed))
        tile = choose_tile(work)
        yield Kernel(work, tile, count_visits(size_E, tile[0]), int(flops), int(moved))


def random_sizes(bench: CompiledBench) -> np.ndarray:
    """Rows of each expert on one device if every token chooses K of E at random: ``size_E``."""
    tokens = bench.tokens // bench.devices
    chances_TE = np.random.default_rng(0).random((tokens, bench.experts))
    chosen_TK = np.argpartition(chances_TE, bench.top_k - 1, axis=1)[:, : bench.top_k]
    return np.bincount(chosen_TK.reshape(-1), minlength=bench.experts)


def count_visits(size_E: np.ndarray, tile: int) -> int:
    """How often tiles of rows are visited: once for each expert with rows in them."""
    end_E = np.cumsum(size_E)
    tiles_E = -(-end_E // tile) - (end_E - size_E) // tile
    return int(tiles_E[size_E > 0].sum())


def report(result: dict[str, Any]) -> str:
    """The figures, line by line."""
    collectives = [f"{count} {name}" for name, count in result["collectives"].items() if count]
    lines = {"arithmetic over ideal": f"{result['flops_ratio']:.3f}"}
    if result["kernels"]:
        lines |= {
            "  in tiles visited": f"{result['visited_flops_ratio']:.3f}",
            "  computed again": f"{result['recomputed_ratio']:.3f}",
        }
    lines |= {
        "bytes accessed": f"{result['gigabytes_accessed']:.2f} GB",
        "peak memory": f"{result['peak_gigabytes']:.2f} GB",
        "collectives": ", ".join(collectives) or "none",
        "compiled in": f"{result['compile_seconds']:.1f} s",
    }
    return "\n".join(f"{name:<24}{value}" for name, value in lines.items())
