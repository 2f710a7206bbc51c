"""How fast a model generates: tokens and bytes a second, beside what the machine can copy.

A decode step reads the weights that it needs once, and does little with each: at best it takes the
time in which the machine moves as many bytes.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from moejax.config.checks import check, check_positive
from moejax.config.config import Config
from moejax.inference.compile_decode import compile_decode, decode_state
from moejax.inference.inference_config import check_can_generate, inference_config
from moejax.inference.prompts import round_up
from moejax.lab.bench.decode_sizes import active_bytes, largest_share, mean_share, weight_bytes
from moejax.lab.bench.generation_times import (
    Ours,
    Timed,
    copy_bytes_per_second,
    draw_params,
    time_in_turn,
)
from moejax.moe.quantise_params import Weights, check_spread
from moejax.moe.quantised import Kind
from moejax.runtime import device_mesh, targets
from moejax.runtime.number_words import short
from moejax.runtime.program_bytes import count_bytes
from moejax.runtime.room import check_room
from moejax.runtime.room import count_bytes as count_room


@dataclass(frozen=True, kw_only=True)
class GenerationBench:
    """What to generate, and how to measure it."""

    batch: tuple[int, ...] = (1, 8, 32)
    """Texts at once; several numbers are measured one after the other."""
    prompt_tokens: int = 128
    """Tokens of each prompt."""
    tokens: int = 48
    """Tokens to generate after each."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of weights and products; by default that of the model."""
    weights: Kind | None = None
    """Weights of 8 or 4 bits, as in `moejax generate`."""
    group: int | Literal["channel"] | None = None
    """With --weights: how many numbers that are summed together share a scale."""
    rounds: int = 3
    """Times that each is measured."""
    compiled: bool = False
    """Only compile the decode step, from shapes alone, and print what it takes."""
    target: str | None = None
    """Compile for a TPU that is not here, such as v5e:1x1."""
    peers: bool = False
    """Also time transformers, with the same weights, after its logits were found equal."""

    def __post_init__(self) -> None:
        check_positive("", self, "prompt_tokens", "tokens", "rounds")
        check(
            bool(self.batch) and min(self.batch, default=0) > 0,
            f"--batch must be numbers greater than 0, not {' '.join(map(str, self.batch))}.",
        )
        check(self.tokens > 1, "--tokens must be at least 2: the first one comes from the prompt.")
        check(
            not (self.peers and (self.compiled or self.target)),
            "--peers measures times: leave --compiled and --target out.",
        )
        check(
            not (self.peers and self.weights),
            f"--peers compares with the same weights, which transformers does not have in"
            f" {self.weights}: leave --weights out.",
        )

    @property
    def quantised(self) -> Weights | None:
        """What --weights and --group ask for."""
        return None if self.weights is None else Weights(kind=self.weights, group=self.group)


def measure(
    bench: GenerationBench, config: Config, vocab_size: int, hf: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Compile or time generation with a model of these settings and random weights; the object that
    ``--json`` prints. ``hf`` is the config.json that the settings come from. Raises ``UserError``.
    """
    check_can_generate(config.model)
    dtype = bench.dtype or config.model.dtype
    # What predicts further tokens is not asked while text is generated.
    model = replace(inference_config(config.model), dtype=dtype, next_tokens=0)
    config = replace(config, model=model)
    if bench.target is not None:
        devices = targets.describe_devices(bench.target)
    else:
        devices = jax.devices()[: config.mesh.beside_data]
    mesh = device_mesh.make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        state = decode_state(config, vocab_size, mesh, bench.quantised)
    check_spread(state["params"], config.mesh)
    result: dict[str, Any] = {
        "platform": bench.target or jax.default_backend(),
        "dtype": dtype,
        "weights": bench.quantised.words if bench.quantised else None,
        "prompt_tokens": bench.prompt_tokens,
        "tokens": bench.tokens,
        "weight_bytes": weight_bytes(state["params"]),
    }
    if bench.compiled or bench.target is not None:
        measured = compile_all(bench, config, vocab_size, mesh, state["params"])
    else:
        measured = time_all(bench, config, vocab_size, mesh, state, hf)
    # What a single batch has stands beside the rest, so that a script needs no loop.
    return result | measured | (measured["batches"][0] if len(bench.batch) == 1 else {})


def compile_all(
    bench: GenerationBench, config: Config, vocab_size: int, mesh: Mesh, params: dict[str, Any]
) -> dict[str, Any]:
    """What a decode step takes, by the compiler, for each size of a batch."""
    slots = round_up(bench.prompt_tokens + bench.tokens)
    batches = []
    for rows in bench.batch:
        compiled = compile_decode(
            config,
            rows,
            config.model.dtype,
            slots,
            vocab_size=vocab_size,
            mesh=mesh,
            weights=bench.quantised,
        )
        memory = compiled.memory_analysis()
        batches.append(
            {
                "batch": rows,
                "active_bytes": active_bytes(
                    config.model, params, rows, largest_share(config.model, rows)
                ),
                "temporary_bytes": int(memory.temp_size_in_bytes),
                "peak_bytes": _count_peak(memory, bench.target is not None),
                "accessed_bytes": _count_accessed(compiled, bench.target is not None),
            }
        )
    return {"compiled": True, "batches": batches}


def _count_peak(memory: Any, on_tpu: bool) -> int:
    """The most that is in memory at once; only the compiler for TPUs says it itself."""
    if on_tpu:
        return int(memory.peak_memory_in_bytes)
    written = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(memory.argument_size_in_bytes + written + memory.temp_size_in_bytes)


def _count_accessed(compiled: Any, on_tpu: bool) -> int:
    """The bytes that a step reads and writes. On CPUs, experts are read in loops, of which XLA
    counts one turn. For TPUs it counts what kernels say of themselves, which is whole banks, though
    they read the chosen experts only.
    """
    if on_tpu:
        return int(compiled.cost_analysis()["bytes accessed"])
    return count_bytes(compiled.as_text())


def time_all(
    bench: GenerationBench,
    config: Config,
    vocab_size: int,
    mesh: Mesh,
    state: dict[str, Any],
    hf: dict[str, Any] | None,
) -> dict[str, Any]:
    """Times for each size of a batch, all in turn with the machine's own copying."""
    check_room(
        count_room(jax.tree.leaves(state["params"])),
        "a model of these sizes",
        "Give --model.num-layers with fewer layers, --dtype bfloat16, or --compiled, which builds"
        " none.",
    )
    with jax.set_mesh(mesh):
        params = draw_params(state["params"])
        ours = Ours(config, vocab_size, mesh, params, state.get("bias_LE"))
        arms: dict[str, Any] = {"moejax": ours}
        found: dict[str, Any] = {}
        if bench.peers:
            from moejax.lab.bench.generation_peers import build_peer  # late: it imports PyTorch

            arms["transformers"], found["agreement"] = build_peer(config, params, hf, mesh)
        prompt_BN = np.random.default_rng(0).integers(
            0, vocab_size, (max(bench.batch), bench.prompt_tokens), dtype=np.int32
        )
        times = time_in_turn(arms, prompt_BN, bench.batch, bench.tokens, bench.rounds)
        copied = copy_bytes_per_second(bench.rounds)
    batches = []
    for rows in bench.batch:
        active = active_bytes(config.model, params, rows, mean_share(config.model, rows))
        one: dict[str, Any] = {"batch": rows, "active_bytes": active}
        for name in arms:
            one[name] = describe_times(times[name, rows], rows, bench, active)
        if bench.peers:
            one["ratio"] = (
                one["moejax"]["tokens_per_second"] / one["transformers"]["tokens_per_second"]
            )
        batches.append(one)
    return {**found, "copy_bytes_per_second": copied, "batches": batches}


def describe_times(
    times: Timed, rows: int, bench: GenerationBench, active: int
) -> dict[str, float]:
    """Tokens and bytes a second."""
    return {
        "prefill_tokens_per_second": rows * bench.prompt_tokens / times.prefill,
        "tokens_per_second": rows / times.step,
        "active_bytes_per_second": active / times.step,
    }


def report(result: dict[str, Any]) -> str:
    """The figures, line by line."""
    how = (result["weights"] or "").replace("--weights", "weights") or "weights"
    head = f"{result['platform']}, {result['dtype']}, {how} {_bytes(result['weight_bytes'])}"
    if result.get("compiled"):
        lines = [
            head,
            f"{'batch':>6}{'active':>12}{'temporary':>12}{'accessed':>12}{'peak':>12}",
        ]
        for one in result["batches"]:
            cells = (one[f"{n}_bytes"] for n in ("active", "temporary", "accessed", "peak"))
            lines.append(f"{one['batch']:>6}" + "".join(f"{_bytes(cell):>12}" for cell in cells))
        return "\n".join(lines)
    lines = [
        f"{head}, prompts of {result['prompt_tokens']} tokens, {result['tokens']} after each",
        f"the machine copies {_bytes(result['copy_bytes_per_second'])}/s",
    ]
    if "agreement" in result:
        lines.append(f"logits agree to {result['agreement']:.1e} of the largest")
    names = ["moejax", *(["transformers"] if "ratio" in result["batches"][0] else [])]
    lines.append(
        f"{'batch':>6}{'':>14}{'prompt tok/s':>14}{'tokens/s':>12}{'bytes/s':>12}{'of copy':>9}"
    )
    for one in result["batches"]:
        for name in names:
            of = one[name]
            share = of["active_bytes_per_second"] / result["copy_bytes_per_second"]
            lines.append(
                f"{one['batch']:>6}{name:>14}{of['prefill_tokens_per_second']:>14,.0f}"
                f"{of['tokens_per_second']:>12,.1f}{_bytes(of['active_bytes_per_second']):>12}"
                f"{share:>9.0%}"
            )
        if "ratio" in one:
            lines.append(f"{'':>6}moejax / transformers: {one['ratio']:.2f}")
    return "\n".join(lines)


def _bytes(number: float) -> str:
    return f"{short(number, 'kMGT')}B"
