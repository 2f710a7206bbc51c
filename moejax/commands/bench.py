"""`moejax bench`: what a routed layer costs; each command measures and prints."""

import json
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import tyro

from moejax.commands.use_cpu import use_cpu
from moejax.config.need import Need
from moejax.lab.bench import compile_layer, gpu, layer, peers, scaling, steps
from moejax.runtime.allocator import take_gpu_memory_as_needed


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How to print the figures."""

    json: bool = False
    """Print the figures as JSON."""


@dataclass(frozen=True, kw_only=True)
class LayerSettings(BenchSettings):
    """The settings of `moejax bench layer`."""

    bench: tyro.conf.OmitArgPrefixes[layer.LayerBench]


@dataclass(frozen=True, kw_only=True)
class CompiledSettings(BenchSettings):
    """The settings of `moejax bench compiled`."""

    bench: tyro.conf.OmitArgPrefixes[compile_layer.CompiledBench]


@dataclass(frozen=True, kw_only=True)
class PeersSettings(BenchSettings):
    """The settings of `moejax bench peers`."""

    bench: tyro.conf.OmitArgPrefixes[peers.PeersBench]


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(BenchSettings):
    """The settings of `moejax bench scaling`."""

    bench: tyro.conf.OmitArgPrefixes[scaling.ScalingBench]


@dataclass(frozen=True, kw_only=True)
class GpuSettings(BenchSettings):
    """The settings of `moejax bench gpu`."""

    bench: tyro.conf.OmitArgPrefixes[gpu.GpuBench]

    NEEDS: ClassVar[tuple[Need, ...]] = (
        Need(
            ("bench.tokens",),
            lambda s: not s.bench.tiny,
            "--tiny, which takes 256",
            "leave --tiny out",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class StepsSettings(BenchSettings):
    """The settings of `moejax bench steps`."""

    bench: tyro.conf.OmitArgPrefixes[steps.StepsBench]


def bench_layer(settings: LayerSettings) -> None:
    """Measure and print, as ``lab/bench/layer.py`` does."""
    _print_figures(layer, settings.bench, settings.json)


def bench_compiled(settings: CompiledSettings) -> None:
    """Measure and print, as ``lab/bench/compile_layer.py`` does."""
    use_cpu()
    _print_figures(compile_layer, settings.bench, settings.json)


def bench_peers(settings: PeersSettings) -> None:
    """Measure and print, as ``lab/bench/peers.py`` does."""
    take_gpu_memory_as_needed()
    _print_figures(peers, settings.bench, settings.json)


def bench_scaling(settings: ScalingSettings) -> None:
    """Measure and print, as ``lab/bench/scaling.py`` does."""
    _print_figures(scaling, settings.bench, settings.json)


def bench_gpu(settings: GpuSettings) -> None:
    """Measure and print, as ``lab/bench/gpu.py`` does."""
    take_gpu_memory_as_needed()
    _print_figures(gpu, settings.bench, settings.json)


def bench_steps(settings: StepsSettings) -> None:
    """Measure and print, as ``lab/bench/steps.py`` does."""
    _print_figures(steps, settings.bench, settings.json)


def _print_figures(bench: ModuleType, settings: Any, as_json: bool) -> None:
    """Exits with 1 if the figures say that a result is wrong."""
    result = bench.measure(settings)
    print(json.dumps(result, indent=2) if as_json else bench.report(result), flush=True)
    if not result.get("right", True):
        raise SystemExit(1)
