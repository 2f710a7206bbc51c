"""What devices can do at most, by their vendors; on a CPU, what a matrix product reaches here."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Peak:
    """The limits of a device."""

    flops: Mapping[str, float]
    """Dense matrix products, FLOP/s by the type of the factors. ``float32`` is what JAX takes by
    default: TF32 on NVIDIA's from A100 on, one pass of bfloat16 on TPUs."""
    memory: float
    """Bytes a second of its main memory, read and written together."""
    links: float | None
    """Bytes a second that it can send to others of its kind over all of its links together (NVLink,
    ICI): half of what vendors give for both directions. None for PCI Express alone."""
    source: str
    """The vendor's page."""
    cores: int = 1
    """Of a TPU's chip, to which the figures belong: JAX may make a device of each core."""


def _tpu(
    page: str, bfloat16: float, memory: float, links: float, cores: int = 1, **more: float
) -> Peak:
    """A TPU's chip: TFLOP/s, and GB/s, with those of the links in both directions."""
    flops = {"bfloat16": bfloat16, "float32": bfloat16, **more}
    source = f"https://docs.cloud.google.com/tpu/docs/{page}"
    peaks = {name: 1e12 * value for name, value in flops.items()}
    return Peak(peaks, 1e9 * memory, 1e9 * links / 2, source, cores)


def _gpu(page: str, memory: float, links: float | None, **flops: float) -> Peak:
    """A GPU: TFLOP/s without sparsity, and GB/s, with those of the links in both directions."""
    peaks = {name: 1e12 * value for name, value in flops.items()}
    return Peak(
        peaks, 1e9 * memory, links and 1e9 * links / 2, f"https://www.nvidia.com/en-us/{page}"
    )


_AMPERE = {"bfloat16": 312, "float16": 312, "float32": 156, "int8": 624}
_HOPPER = {"bfloat16": 989.4, "float16": 989.4, "float32": 494.7, "float8": 1978.9, "int8": 1978.9}
_HOPPER_PCIE = {"bfloat16": 756, "float16": 756, "float32": 378, "float8": 1513, "int8": 1513}
_HOPPER_NVL = {"bfloat16": 835, "float16": 835, "float32": 417, "float8": 1670, "int8": 1670}
_BLACKWELL = {"bfloat16": 2250, "float16": 2250, "float32": 1125, "float8": 4500, "int8": 4500}
_ADA = {"bfloat16": 121, "float16": 121, "float32": 60, "float8": 242, "int8": 242}

PEAKS: dict[str, Peak] = {
    "TPU v4": _tpu("v4", 275, 1228, 600, cores=2, int8=275),
    "TPU v5 lite": _tpu("v5e", 197, 819, 400, int8=393),
    "TPU v5": _tpu("v5p", 459, 2765, 1200, cores=2, int8=918),
    "TPU v6 lite": _tpu("v6e", 918, 1638, 800, int8=1836),
    "TPU7x": _tpu("tpu7x", 2307, 7380, 1200, cores=2, float8=4614),
    "NVIDIA A100-SXM4-40GB": _gpu("data-center/a100", 1555, 600, **_AMPERE),
    "NVIDIA A100-SXM4-80GB": _gpu("data-center/a100", 2039, 600, **_AMPERE),
    "NVIDIA A100-PCIE-40GB": _gpu("data-center/a100", 1555, None, **_AMPERE),
    "NVIDIA A100 80GB PCIe": _gpu("data-center/a100", 1935, None, **_AMPERE),
    "NVIDIA H100 80GB HBM3": _gpu("data-center/h100", 3350, 900, **_HOPPER),
    "NVIDIA H100 PCIe": _gpu("data-center/h100", 2000, None, **_HOPPER_PCIE),
    "NVIDIA H100 NVL": _gpu("data-center/h100", 3900, 600, **_HOPPER_NVL),
    "NVIDIA H200": _gpu("data-center/h200", 4800, 900, **_HOPPER),
    "NVIDIA B200": _gpu("data-center/hgx", 8000, 1800, **_BLACKWELL),
    "NVIDIA L4": _gpu("data-center/l4", 300, None, **_ADA),
    "Tesla T4": _gpu("data-center/tesla-t4", 300, None, float16=65, float32=8.1, int8=130),
}
"""By JAX's ``device_kind``."""

OTHER_NAMES = {"TPU v5e": "TPU v5 lite", "TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}
"""What some versions of libtpu call them."""


def look_up(kind: str, cores: int | None = None) -> Peak | None:
    """The limits of a device of this kind, which is so many cores of a TPU's chip, by default the
    whole chip; None for one that is not in the table.
    """
    peak = PEAKS.get(OTHER_NAMES.get(kind, kind))
    if peak is None or cores in (None, peak.cores):
        return peak
    assert cores is not None
    part = cores / peak.cores
    flops = {name: part * value for name, value in peak.flops.items()}
    links = peak.links and part * peak.links
    return Peak(flops, part * peak.memory, links, peak.source, cores)


@dataclass(frozen=True)
class FoundPeak:
    """The peak FLOP/s of one device, and in words where they are from."""

    flops: float
    words: str


def find_peak(device: jax.Device, dtype: str, given: float | None = None) -> FoundPeak | None:
    """The peak of a device's products of numbers of ``dtype``: as ``given``, by the table, or, on a
    CPU, measured once (see ``measure_product``), in equal parts for all CPU devices. None if
    nothing is known.
    """
    if given is not None:
        return FoundPeak(given, "as given")
    if device.platform == "cpu":
        share = measure_product() / jax.local_device_count()
        return FoundPeak(share, "of a float32 matrix product here")
    peak = look_up(device.device_kind, getattr(device, "num_cores", None))
    if peak is None or dtype not in peak.flops:
        return None
    return FoundPeak(peak.flops[dtype], f"of {dtype} products, by the vendor")


SECONDS, TIMES = 0.15, 5
"""About how long the measurement of a product may take beside compiling, and how often each one is
made at least: on a busy machine a single one may be held up by another program.
"""


@cache
def measure_product() -> float:
    """FLOP/s of the fastest of some float32 matrix products on this machine's CPU, by XLA. Sizes
    are doubled while there is time: a small product leaves many cores idle.
    """
    best, spent = 0.0, 0.0
    multiply = jax.jit(jnp.dot)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for size in (1024, 2048, 4096, 8192):
            x = jax.device_put(np.ones((size, size), np.float32))
            jax.block_until_ready(multiply(x, x))
            for _ in range(TIMES):
                start = time.perf_counter()
                jax.block_until_ready(multiply(x, x))
                seconds = time.perf_counter() - start
                best, spent = max(best, 2 * size**3 / seconds), spent + seconds
            # The next takes at least eight times as long as this one.
            if spent + 2 * 8 * TIMES * size**3 / best > SECONDS:
                return best
    return best
