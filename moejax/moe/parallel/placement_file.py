"""A placement of experts as JSON: what `moejax plan placement --json` prints, and is read back.

Letters: P: places of experts and replicas; Q: devices.
"""

from pathlib import Path
from typing import Any

import numpy as np

from moejax.config.errors import ConfigError
from moejax.config.json_files import MOST_TABLE_BYTES, read_json
from moejax.moe.parallel.placement import Placement


def placement_json(plan: Placement) -> dict[str, Any]:
    """The object that ``--json`` prints; ``expert`` is [layers, places], device after device."""
    return {
        "expert": plan.expert_LP.tolist(),
        "replicas": plan.replicas_LE.tolist(),
        "device_load": plan.load_LQ.tolist(),
        "balancedness": plan.balancedness_L.tolist(),
    }


def read_placement(file: Path) -> Placement:
    """The placement in a file. Raises ``ConfigError`` if there is none."""
    try:
        fields = read_json(file, MOST_TABLE_BYTES)
        expert_LP, load_LQ = np.array(fields["expert"]), np.array(fields["device_load"], np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"--placement {file} cannot be read: {reason}. {_WANTED}") from error
    fits = expert_LP.ndim == load_LQ.ndim == 2 and expert_LP.dtype.kind == "i"
    fits = fits and len(expert_LP) == len(load_LQ) and expert_LP.size > 0 and load_LQ.size > 0
    if not fits or expert_LP.min() < 0 or expert_LP.shape[1] % load_LQ.shape[1]:
        raise ConfigError(
            f"--placement {file} holds no placement: `expert` must be whole numbers [layers,"
            f" places], `device_load` numbers [layers, devices], and every device must have as many"
            f" places. {_WANTED}"
        )
    plan = Placement(expert_LP, load_LQ)
    if not plan.replicas_LE.all():
        layer, expert = np.argwhere(plan.replicas_LE == 0)[0]
        raise ConfigError(
            f"--placement {file} gives expert {expert} no place in layer {layer}. {_WANTED}"
        )
    return plan


_WANTED = "It should be what `moejax plan placement --json` prints."
