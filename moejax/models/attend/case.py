"""What there is to attend to, as far as forms of attention differ in it.

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; U: width of a
head's values.
"""

from dataclasses import dataclass

import jax

from moejax.models.attend.seen import Seen
from moejax.runtime import device_mesh

HOPPER = (9, 0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What there is to attend to, as far as forms differ in it."""

    platform: str
    """``cpu``, ``cuda`` or ``tpu``."""
    queries: int
    """Queries of a sequence (N)."""
    keys: int
    """Positions that they look at (M)."""
    heads: int
    """Query heads (H)."""
    key_heads: int
    """Key/value heads (J)."""
    head_size: int
    """Width of a head's queries and keys (A)."""
    value_size: int
    """Width of a head's values (U)."""
    dtype: str
    causal: bool = True
    limited: bool = False
    """Whether there is a window, or another limit of what is seen."""
    limit_differs: bool = False
    """Whether that is not known before the program runs, as layers of one loop differ in it."""
    sinks: bool = False
    in_order: bool = True
    """Whether positions stand in order (``Seen.in_order``)."""
    capability: tuple[int, int] = HOPPER
    """Of a GPU; of one that is not here, Hopper's."""


def describe(
    q_BNHA: jax.Array,
    k_BMJA: jax.Array,
    v_BMJU: jax.Array,
    seen: Seen,
    sink_H: jax.Array | None,
) -> Case:
    """The case of these arrays, or of their shapes, on the mesh in use."""
    return Case(
        platform=device_mesh.platform(),
        queries=q_BNHA.shape[1],
        keys=k_BMJA.shape[1],
        heads=q_BNHA.shape[2],
        key_heads=k_BMJA.shape[2],
        head_size=q_BNHA.shape[3],
        value_size=v_BMJU.shape[3],
        dtype=q_BNHA.dtype.name,
        causal=seen.causal,
        limited=seen.window is not None or seen.reach is not None,
        limit_differs=seen.near is not None,
        sinks=sink_H is not None,
        in_order=seen.in_order,
        capability=_find_capability(),
    )


def _find_capability() -> tuple[int, int]:
    if jax.default_backend() != "gpu":
        return HOPPER
    major, minor = jax.local_devices()[0].compute_capability.split(".")
    return int(major), int(minor)
