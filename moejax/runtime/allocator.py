"""What is set before JAX starts: that glibc keeps freed memory, that JAX leaves a GPU some.

By default glibc returns large freed blocks to the system and faults them in again, page by page:
tens of thousands of faults in every training step on a CPU (docs/benchmarks.md has the figures).
"""

import ctypes
import os
import sys

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Set malloc to reuse what it has: no trimming, no mmap for large blocks, one arena. Elsewhere
    than on Linux with glibc, do nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    for option, value in (
        (M_MMAP_MAX, 0),
        (M_TRIM_THRESHOLD, 2**31 - 1),
        (M_TOP_PAD, 256 << 20),
        (M_ARENA_MAX, 1),
    ):
        mallopt(option, value)


def take_gpu_memory_as_needed() -> None:
    """Let JAX not take three quarters of a GPU's memory at once: another library wants some too."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
