"""Check that all arms of a comparison compute the same outputs and gradients of the input."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from moejax.config.errors import UserError
from moejax.lab.bench.programs import Problem, dense_arms, full_precision, routed_arms
from moejax.moe.scores import multiply_exactly

LIMITS = {"float32": 1e-4, "bfloat16": 2e-2}
"""The largest allowed difference from our layer in float32, divided by its largest value."""
MARGINS = {"float32": 1e-3, "bfloat16": 3e-2}
"""Tokens whose last choice wins by less than this, in logits, are not compared, since rounding may
decide the choice."""


def check_agreement(problem: Problem, arms: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """How far outputs and gradients of the input are from ours in float32, divided by the largest
    value.

    Raises ``UserError`` if that is more than rounding. Outputs and gradients have a row for each
    token; rows of tokens whose choice rounding may decide are left out. Our own layer is not
    compared if it drops choices.
    """
    shape = problem.shape
    routed, dense = compute_expected(problem)
    clear_T = clear_choices(problem)
    errors = {}
    for program, run in arms.items():
        name = program.removesuffix(" forward+backward")
        if name == program or (name == "ours" and shape.slots is not None):
            continue
        is_dense = name in ("dense", "torch dense")
        rows_T = np.ones_like(clear_T) if is_dense else clear_T
        errors[name] = largest_differences(run(), dense if is_dense else routed, rows_T)
        for what, error in errors[name].items():
            if not error <= LIMITS[shape.dtype]:
                raise UserError(
                    f"{name} does not compute what our layer does: its {what} is {error:.1e} of"
                    f" the largest value away ({LIMITS[shape.dtype]:.0e} is allowed)."
                )
    return {"limit": LIMITS[shape.dtype], "compared_share": float(clear_T.mean()), "errors": errors}


def compute_expected(problem: Problem) -> tuple[Any, Any]:
    """The results of our layers in float32: of the routed one, without drops, and the dense one."""
    shape = replace(
        problem.shape, dtype="float32", dispatch="grouped", group_size=None, capacity_factor=None
    )
    x_1TD, dy_1TD = (x.astype(jnp.float32) for x in (problem.x_1TD, problem.dy_1TD))
    problem = replace(problem, shape=shape, x_1TD=x_1TD, dy_1TD=dy_1TD)
    with full_precision("float32"):
        arms = dense_arms(problem) | routed_arms("routed", problem, shape)
    return arms["routed forward+backward"](), arms["dense forward+backward"]()


def clear_choices(problem: Problem) -> np.ndarray:
    """Which tokens choose their experts by more than rounding can change: ``clear_T`` (bool)."""
    shape, margin = problem.shape, MARGINS[problem.shape.dtype]
    if shape.top_k == shape.experts:
        return np.ones(shape.tokens, bool)
    w_DE = problem.routed["params"]["w_router_DE"]
    logits_TE = np.sort(
        np.asarray(multiply_exactly(problem.x_1TD[0].astype(jnp.float32), w_DE)), axis=-1
    )
    clear_T = logits_TE[:, -shape.top_k] - logits_TE[:, -shape.top_k - 1] > margin
    if not clear_T.any():
        raise UserError(
            f"--tokens {shape.tokens}, --experts {shape.experts}: no token chooses its experts by"
            f" a margin of {margin}, so nothing can be compared. Take more tokens."
        )
    return clear_T


def largest_differences(result: Any, right: Any, rows_T: np.ndarray) -> dict[str, float]:
    """The largest difference of the output, and of the input's gradient, in these rows."""
    (y, (_, dx)), (y_0, (_, dx_0)) = result, right
    pairs = {"output": (y, y_0), "gradient of the input": (dx, dx_0)}
    errors = {}
    for name, (got, wanted) in pairs.items():
        wanted_RD = as_float32(wanted)[0, rows_T]
        away_RD = np.abs(as_float32(got)[0, rows_T] - wanted_RD)
        errors[name] = float(away_RD.max(initial=0) / np.abs(wanted_RD).max(initial=1e-30))
    return errors


def as_float32(value: Any) -> np.ndarray:
    """An array of JAX or a tensor of PyTorch."""
    return np.asarray(value.float().cpu() if hasattr(value, "detach") else value, np.float32)
