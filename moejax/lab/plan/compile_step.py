"""Compile a config's training step for TPUs that this machine does not have: does it fit, what does
it compute, and what does it send?
"""

import functools
import sys
import time
from typing import Any

import jax

from moejax.config.change import changed
from moejax.config.config import Config
from moejax.config.errors import UserError
from moejax.config.model import ModelConfig
from moejax.lab.plan.step_flops import hidden_flops, muon_flops, step_flops
from moejax.models import by_kind
from moejax.models.adapters import find_weights
from moejax.models.batch_shapes import batch_shapes
from moejax.models.layer_runs import Run, cut_layers, with_repeats
from moejax.models.used_types import cast_shapes
from moejax.moe.quantise_params import quantise_shapes
from moejax.runtime import device_fit, device_mesh, partition, targets
from moejax.runtime.number_words import short
from moejax.train.offload import lay_state
from moejax.train.optimizer import make_optimizer
from moejax.train.prepare import make_step
from moejax.train.state import TrainState, init_state

WITHOUT_LOOPS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
"""Without this, a product of a gathered array becomes a loop that overlaps with the gathering, and
the compiler counts the body of a loop once."""


def measure_step(config: Config, target: str, slices: int, vocab_size: int) -> dict[str, Any]:
    """Compile for a target (see ``targets.describe_devices``) and read the figures of one device.
    Returns the object that ``--json`` prints.

    Memory is that of the step as it would run. Arithmetic and collectives are counted in unrolled
    steps with one and with two units of layers, and extrapolated: in a loop the compiler counts the
    body only once. So attention's scores, where they are computed block by block or by a kernel,
    are those of the formula.
    """
    devices = targets.describe_devices(target, slices)
    grid = device_mesh.make_mesh(config.mesh, devices)
    device_fit.check_fits(config, grid)
    start = time.perf_counter()
    found = {"target": target, "slices": slices, "mesh": dict(grid.shape)}
    kind = devices[0].device_kind
    found |= {"device": kind, "memory_gigabytes": targets.HBM_BYTES.get(kind, 0) / 1e9}
    say("compiling the training step (minutes, for large models) ...")
    try:
        compiled = compile_step(config, grid, vocab_size)
    except OutOfMemory as error:
        say("it does not fit; looking for the largest buffers in a smaller step ...")
        found |= {"fits": False, "compiler": str(error)}
        return found | largest_buffers_of_smaller(config, grid, vocab_size)
    memory = compiled.memory_analysis()
    say(f"it fits, compiled in {time.perf_counter() - start:.0f} s; counting its arithmetic ...")
    found |= {
        "fits": True,
        "peak_gigabytes": memory.peak_memory_in_bytes / 1e9,
        "state_gigabytes": memory.argument_size_in_bytes / 1e9,
        "buffers": targets.list_largest_buffers(compiled.as_text()),
        "overlapping": targets.count_overlapping(compiled.as_text()),
        "compile_seconds": time.perf_counter() - start,
    }
    return found | count_work(config, grid, vocab_size)


say = functools.partial(print, file=sys.stderr, flush=True)


class OutOfMemory(Exception):
    """The compiler says that a program needs more memory than a device has."""


def compile_step(
    config: Config, grid: jax.sharding.Mesh, vocab_size: int, options: dict[str, str] | None = None
) -> Any:
    """Compile the training step for described devices. Raises ``OutOfMemory``, and ``UserError``
    with the compiler's message for any other error.
    """
    model = by_kind.build(config.model, vocab_size, config.mesh)
    step = make_step(config, model, make_optimizer(config.optim))
    with jax.set_mesh(grid):
        base, state = base_shapes(config, vocab_size), state_shapes(config, vocab_size)
        shardings = (
            partition.tree_shardings(grid, base, config.mesh.fsdp),
            lay_state(config, state, grid),
        )
        base, state = partition.set_shardings((base, state), shardings)
        rows = partition.activation_sharding(grid, "batch_BN")
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows),
            batch_shapes(config, config.data.batch_size),
        )
        jitted = jax.jit(step, out_shardings=(shardings[1], None), donate_argnums=1)
        traced = jitted.trace(base, state, batch)
        try:
            ours = device_mesh.compiler_options(config.mesh, "tpu")
            return traced.lower(lowering_platforms=("tpu",)).compile(ours | (options or {}))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise OutOfMemory(str(error).split("RESOURCE_EXHAUSTED: ")[-1]) from error
            raise UserError(f"the compiler says: {error}") from error


def base_shapes(config: Config, vocab_size: int) -> dict | None:
    """The shapes and types of the parameters that stay as they are, beside adapters; or None."""
    if config.run.lora.rank is None:
        return None
    params = by_kind.state_shapes(config, vocab_size)["params"]
    params = cast_shapes(params, config.model)
    return quantise_shapes(params, find_weights(config.run.lora))


def state_shapes(config: Config, vocab_size: int) -> TrainState:
    """The shapes and types of the state of a run."""
    model, optimizer = by_kind.build(config.model, vocab_size), make_optimizer(config.optim)
    return jax.eval_shape(functools.partial(init_state, model, optimizer, config))


def count_work(config: Config, grid: jax.sharding.Mesh, vocab_size: int) -> dict[str, Any]:
    """Arithmetic and collectives of a whole step, on one device."""
    shallow, runs = shallow_and_full(config.model)
    base = count_operations(with_layers(config, shallow), grid, vocab_size)
    totals, layers = dict(base), []
    for number, run in enumerate(runs):
        if run.repeats == 1:
            continue
        deeper = [2 if i == number else 1 for i in range(len(runs))]
        more = count_operations(with_layers(config, deeper), grid, vocab_size)
        added = {key: more[key] - base[key] for key in base}
        totals = {key: totals[key] + (run.repeats - 1) * added[key] for key in totals}
        moved = {key: added[key] for key in targets.COLLECTIVES if added[key]}
        layers.append({"layers": run.part, "repeats": run.repeats, "collectives": moved})
    with jax.set_mesh(grid):
        params = state_shapes(config, vocab_size).params
        formula = step_flops(config, vocab_size) + muon_flops(params, config.optim)
        totals["flops"] += hidden_flops(config, vocab_size)
    return {
        "flops": totals["flops"],
        "formula_flops": formula,
        "flops_ratio": totals["flops"] / formula,
        "collectives": {key: totals[key] for key in targets.COLLECTIVES if totals[key]},
        "repeated": layers,
    }


def shallow_and_full(model: ModelConfig) -> tuple[list[int], list[Run]]:
    """The repeats of each run of layers in the smallest model of this kind; and the runs."""
    runs = cut_layers(model)
    return [1] * len(runs), runs


def with_layers(config: Config, repeats: list[int]) -> Config:
    """The config with this many repeats of each run of layers, unrolled."""
    model = with_repeats(config.model, repeats)
    return changed(config, {"model": changed(model, {"unroll": True})})


def count_operations(config: Config, grid: jax.sharding.Mesh, vocab_size: int) -> dict[str, float]:
    """FLOPs and collectives of a step without loops over layers or inside products."""
    compiled = compile_step(config, grid, vocab_size, WITHOUT_LOOPS)
    return {
        "flops": compiled.cost_analysis()["flops"],
        **targets.count_collectives(compiled.as_text()),
    }


def largest_buffers_of_smaller(
    config: Config, grid: jax.sharding.Mesh, vocab_size: int
) -> dict[str, Any]:
    """The largest buffers of a smaller step that fits: fewer layers, if needed fewer sequences."""
    shallow = with_layers(config, shallow_and_full(config.model)[0])
    as_deep = shallow.model.num_layers == config.model.num_layers
    unit = config.sequences_per_group * grid.shape["data"] * grid.shape["expert"]
    batch = config.data.batch_size
    while True:
        smaller = changed(shallow, {"data.batch_size": batch, "optim.accumulate": 1})
        try:
            if as_deep and batch == config.data.batch_size:
                raise OutOfMemory  # as the whole step, which is no larger
            text = compile_step(smaller, grid, vocab_size).as_text()
        except OutOfMemory:
            if batch == unit:
                return {"buffers": []}
            batch = max(unit, batch // 2 // unit * unit)
            continue
        fitting = {"layers": smaller.model.num_layers, "sequences": batch}
        return {"buffers_of": fitting, "buffers": targets.list_largest_buffers(text)}


def describe_step(result: dict[str, Any]) -> str:
    """The figures, line by line."""
    axes = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    slices = f"{result['slices']} slices of " * (result["slices"] > 1)
    lines = {"target": f"{slices}{result['target']} ({result['device']}), {axes}"}
    room = f" of {result['memory_gigabytes']:.2f} GB a device has"
    if not result["fits"]:
        lines["does not fit"] = result["compiler"]
    else:
        lines |= {
            "peak memory": f"{result['peak_gigabytes']:.2f} GB" + room,
            "  state, batch": f"{result['state_gigabytes']:.2f} GB",
            "arithmetic": f"{result['flops'] / 1e12:.3f} TFLOP a device and step,"
            f" {result['flops_ratio']:.3f} of the formula",
            "collectives": _list_counts(result["collectives"]),
            "  beside products": f"{result['overlapping']} of those in the program's text",
        }
        for run in result["repeated"]:
            name = {"dense": "dense layer", "unit": "unit of layers", "rest": "last layer"}
            lines[f"  a {name[run['layers']]}"] = _list_counts(run["collectives"])
    made = [f"{name:<20}{value}" for name, value in lines.items()]
    if result["buffers"]:
        of = result.get("buffers_of")
        which = f" of a step with {of['sequences']} sequences, layers {of['layers']}" if of else ""
        made.append(f"largest buffers{which}")
        made += [f"  {short(size)}B  {array}  {name}" for size, array, name in result["buffers"]]
    return "\n".join(made)


def _list_counts(counts: dict[str, float]) -> str:
    return ", ".join(f"{count:g} {name}" for name, count in counts.items()) or "none"
