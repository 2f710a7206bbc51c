"""What the libraries' kernels cannot carry; the form ``blockwise`` does then."""

from moejax.models.attend.case import HOPPER, Case

BLOCK_BYTES = 2304 * 2**10
"""Splash: the queries and values of a block, or its keys and values. The most with which v5e's
compiler finds room for all that a kernel has in fast memory."""
LEAST_BLOCK = 128
"""Splash: positions in the smallest block."""


def why_not_splash(case: Case) -> str | None:
    """What of the case the kernels for TPUs cannot carry; None where they can."""
    if case.dtype not in ("float32", "bfloat16"):
        return f"has no {case.dtype}"
    bytes_each = (4 if case.dtype == "float32" else 2) * (case.head_size + case.value_size)
    if LEAST_BLOCK * bytes_each > BLOCK_BYTES:
        return f"has no room for heads of {case.head_size:,} + {case.value_size:,} numbers"
    return _why_not_by_index(case)


def why_not_cudnn(case: Case) -> str | None:
    """What of the case cuDNN's kernels cannot carry; None where they can."""
    if case.dtype != "bfloat16":
        return f"has bfloat16, not {case.dtype}"
    if case.sinks:
        return "has no sinks"
    width, widest = find_width(case.queries, case.head_size, case.value_size), 256
    if case.capability < HOPPER:
        widest = 128
    if width > widest:
        return (
            f"has heads of at most {widest} numbers on this GPU, and {case.head_size} with those"
            f" that tell documents apart are {width}"
        )
    return _why_not_by_index(case)


def find_width(queries: int, head_size: int, value_size: int) -> int:
    """cuDNN: the width of the heads that it is given, a multiple of 8."""
    return -(-max(tag_size(queries) + head_size, value_size) // 8) * 8


def tag_size(queries: int) -> int:
    """cuDNN: so many numbers of a head tell of which document, of so many, a position is
    (``cudnn.tag``).
    """
    return 2 * (queries - 1).bit_length()


def _why_not_by_index(case: Case) -> str | None:
    if case.queries != case.keys:
        return f"is for as many queries as keys, not {case.queries:,} and {case.keys:,}"
    if case.limited and not case.causal:
        return "has a window only where later positions are hidden"
    if case.causal and not case.in_order:
        return "counts positions by index, and these stand in another order"
    return None
