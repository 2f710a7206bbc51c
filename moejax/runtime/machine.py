"""The machine that a program runs on, for its records; and how many threads it computes with."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

THREADS = "NPROC"
"""The variable of the environment by which XLA's CPU client is told how many threads to have."""
OTHER_LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What numpy's libraries ask."""
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
CPUS = Path("/proc/cpuinfo")


def describe_machine() -> dict[str, Any]:
    """The processor, the cores that this process may use, the threads that it computes with, and
    the system, as plain values.
    """
    cores = count_cores()
    return {
        "cpu": _name_cpu(),
        "cores": cores,
        "threads": int(os.environ.get(THREADS, cores)),
        "system": f"{platform.system()} {platform.machine()}",
    }


def count_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads(environment: Mapping[str, str], threads: int) -> dict[str, str]:
    """The environment of a process that computes with so many threads on CPUs. It is not bound to
    cores, so that two such processes never share one while another is free.
    """
    limited = dict.fromkeys((THREADS, *OTHER_LIBRARIES), str(threads))
    if threads == 1:
        flags = environment.get("XLA_FLAGS", "")
        limited["XLA_FLAGS"] = f"{flags} {ONE_THREAD}".strip()
    return {**environment, **limited}


def _name_cpu() -> str:
    """What the processor calls itself."""
    try:
        lines = CPUS.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
