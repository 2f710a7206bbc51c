"""What a program runs on, for its records: the machine, its threads, and moejax's own code."""

import os
import platform
import subprocess
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


def find_commit(folder: Path) -> str | None:
    """The commit of the git checkout that has ``folder`` at its top, with `-dirty` if files are
    others; None for a package that was installed, and where git does not answer.
    """
    if not (folder / ".git").exists():  # a checkout around an installed package is another project
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


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
