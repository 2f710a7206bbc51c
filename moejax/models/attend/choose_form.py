"""The one place that decides in which form attention is computed. All give the same;
docs/benchmarks.md has the measurements that the choice follows.

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; U: width of a
head's values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from moejax.config.attention import AttentionForm
from moejax.config.errors import ConfigError
from moejax.models.attend.seen import Seen
from moejax.runtime import device_mesh

FEW = 256 * 256
"""With so many pairs of positions, all scores at once take no longer than block by block."""
FEW_QUERIES = 16
"""Fewer queries make no more scores of a head than there are numbers in its keys."""


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


@dataclass(frozen=True)
class Kernel:
    """A form that a library has for one platform."""

    platform: str
    refuse: Callable[[Case], str | None]
    """Why it cannot carry a case; None where it can."""


KERNELS: dict[str, Kernel] = {}
"""By the form. Where a kernel cannot carry a case, ``blockwise`` does."""


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
    )


def choose_form(form: AttentionForm, case: Case) -> tuple[AttentionForm, str]:
    """The form that carries a case, and why. Raises ``ConfigError`` for one that is not there on
    its platform.
    """
    kernel = KERNELS.get(form)
    if kernel is not None:
        if kernel.platform != case.platform:
            raise ConfigError(
                f"--model.attention.form {form} is for {kernel.platform}, but this runs on"
                f" {case.platform}: take auto, or blockwise."
            )
        why_not = kernel.refuse(case)
        return (form, "as asked") if why_not is None else ("blockwise", f"{form} {why_not}")
    if form != "auto":
        return form, "as asked"
    if case.queries * case.keys <= FEW or case.queries < FEW_QUERIES:
        return "dense", f"{case.queries:,} x {case.keys:,} scores of a head are few"
    there = [(name, each) for name, each in KERNELS.items() if each.platform == case.platform]
    for name, each in there:
        why_not = each.refuse(case)
        if why_not is None:
            return name, f"the kernel for {case.platform}"  # type: ignore[return-value]
        return "blockwise", f"{name} {why_not}"
    return "blockwise", f"no {case.queries:,} x {case.keys:,} scores in memory"
