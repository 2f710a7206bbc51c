"""What a logging interval tells of the routers, by layer and expert, and the alarms that it raises.

Letters: W: stretches of the sequence.
"""

from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.config import Config
from moejax.config.model import ModelConfig
from moejax.models.layer_runs import get_stack, stack_layers
from moejax.runs.alarms import PATIENCE, Recent, find_alarms
from moejax.runs.run_directory import RunDirectory
from moejax.train.totals import Totals


def router_arrays(
    params: dict, bias_LE: jax.Array | None, config: ModelConfig
) -> dict[str, jax.Array]:
    """Of each routed layer: ``router_norm_LE``, the Euclidean norm of each expert's row of the
    router, if it has weights; ``bias_LE``, if there is a selection bias.
    """
    found = {} if bias_LE is None else {"bias_LE": bias_LE}
    norms: list[jax.Array] = []
    order: list[int] = []
    for stack in stack_layers(config):
        if stack.routed is not None and _find_router(block := get_stack(params, stack)["moe"]):
            norms.append(_measure_norms(block))
            order += stack.routed
    if norms:
        found["router_norm_LE"] = jnp.concatenate(norms)[np.argsort(order)]
    return found


def _find_router(block: dict) -> str | None:
    """The name of the router's weights, if it has any."""
    return next((name for name in ("w_router_DE", "w_router_DEC") if name in block), None)


def _measure_norms(block: dict) -> jax.Array:
    """[repeats, E]: over the width, and the slots of a soft router."""
    w_RDE = block[_find_router(block)].astype(jnp.float32)
    return jnp.sqrt(jnp.square(w_RDE).sum(axis=(1, *range(3, w_RDE.ndim))))


def interval_arrays(
    totals: Totals, routers: dict[str, jax.Array], config: ModelConfig
) -> dict[str, Any]:
    """The arrays of ``load/STEP.npz``: sums of the interval, means over its tokens, and what
    ``router_arrays`` says at its end. At most 24 bytes for each layer and expert.
    """
    tokens_L = np.maximum(totals["routed_L"], 1)
    stretches: dict[str, Any] = {
        name: totals[name] for name in ("asked_LW", "seated_LW") if name in totals
    }
    return {
        "asked_LE": totals["asked_LE"],
        "seated_LE": totals["seated_LE"],
        **stretches,
        "entropy_L": (totals["entropy_L"] / tokens_L).astype(np.float32),
        "log_z_squared_L": (totals["log_z_squared_L"] / tokens_L).astype(np.float32),
        "tokens": np.int64(totals["targets"]),
        "layers": np.flatnonzero(config.routed_blocks),
        **{name: np.asarray(array, np.float32) for name, array in routers.items()},
    }


class History:
    """The intervals so far, as alarms want them; in a process that does not own the run, none."""

    def __init__(self, run: RunDirectory) -> None:
        """Take up those that the run has written."""
        self._lines = run.metrics("train") if run.owner else []
        loads = run.last_loads(PATIENCE) if run.owner else []
        self._loads = deque((load["asked_LE"] for load in loads), PATIENCE)

    def judge(
        self, line: dict[str, Any], asked_LE: np.ndarray | None, config: Config
    ) -> dict[str, Any]:
        """Add the alarms of the next interval to its line, if there are any."""
        self._lines.append(line)
        if asked_LE is not None:
            self._loads.append(asked_LE)
        layers = np.flatnonzero(config.model.routed_blocks).tolist()
        if found := find_alarms(Recent(self._lines, self._loads, layers), config):
            self._lines[-1] = line = line | {"alarms": found}
        return line
