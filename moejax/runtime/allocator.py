"""What is set before JAX starts: that glibc keeps freed memory, that JAX leaves a GPU some.

By default glibc returns large freed blocks to the system and faults them in again, page by page:
tens of thousands of faults in every training step on a CPU (docs/benchmarks.md has the figures).
"""

import ctypes
import os
import sys
from typing import Any

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Set malloc to reuse what it has: no trimming, no mmap for large blocks, one arena. Elsewhere
    than on Linux with glibc, do nothing.
    """
    mallopt = _find_in_glibc("mallopt")
    if mallopt is None:
        return
    for option, value in (
        (M_MMAP_MAX, 0),
        (M_TRIM_THRESHOLD, 2**31 - 1),
        (M_TOP_PAD, 256 << 20),
        (M_ARENA_MAX, 1),
    ):
        mallopt(option, value)


def return_freed_memory() -> None:
    """Give what is free back to the system: what a model was read through is not needed again."""
    malloc_trim = _find_in_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _find_in_glibc(name: str) -> Any:
    """A function of glibc; None elsewhere than on Linux, and with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None


def take_gpu_memory_as_needed() -> None:
    """Let JAX not take three quarters of a GPU's memory at once: another library wants some too."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
