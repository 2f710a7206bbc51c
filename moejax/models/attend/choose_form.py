"""The one place that decides in which form attention is computed. All give the same;
docs/benchmarks.md has the measurements that the choice follows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from moejax.config.attention import AttentionForm
from moejax.config.errors import ConfigError
from moejax.models.attend.carried import why_not_cudnn, why_not_splash
from moejax.models.attend.case import Case

FEW = 256 * 256
"""With so many pairs of positions, all scores at once take no longer than block by block."""
FEW_QUERIES = 16
"""Fewer queries make no more scores of a head than there are numbers in its keys."""


@dataclass(frozen=True)
class Kernel:
    """A form that a library has for one platform."""

    platform: str
    refuse: Callable[[Case], str | None]
    """Why it cannot carry a case; None where it can."""


KERNELS: dict[AttentionForm, Kernel] = {
    "splash": Kernel("tpu", why_not_splash),
    "cudnn": Kernel("cuda", why_not_cudnn),
}
"""By the form. Where a kernel cannot carry a case, ``blockwise`` does, or ``dense`` if it is small.
"""


def choose_form(form: AttentionForm, case: Case) -> tuple[AttentionForm, str]:
    """The form that carries a case, and why. Raises ``ConfigError`` for one that is not there on
    its platform.
    """
    few = case.queries * case.keys <= FEW or case.queries < FEW_QUERIES
    kernel = KERNELS.get(form)
    if kernel is not None:
        if kernel.platform != case.platform:
            raise ConfigError(
                f"--model.attention.form {form} is for {kernel.platform}, but this runs on"
                f" {case.platform}: take auto, or blockwise."
            )
        why_not = kernel.refuse(case)
        if why_not is None:
            return form, "as asked"
        return "dense" if few else "blockwise", f"{form} {why_not}"
    if form != "auto":
        return form, "as asked"
    if few:
        return "dense", f"{case.queries:,} x {case.keys:,} scores of a head are few"
    there = [(name, each) for name, each in KERNELS.items() if each.platform == case.platform]
    for name, each in there:
        why_not = each.refuse(case)
        if why_not is None:
            return name, f"the kernel for {case.platform}"
        return "blockwise", f"{name} {why_not}"
    return "blockwise", f"no {case.queries:,} x {case.keys:,} scores in memory"
