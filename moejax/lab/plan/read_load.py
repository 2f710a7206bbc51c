"""Read the load of the experts from a file or from a run."""

import os
import zipfile
from pathlib import Path

import numpy as np

from moejax.config.checks import check
from moejax.config.errors import UserError
from moejax.config.json_files import MEBIBYTE, open_regular
from moejax.config.model import ModelConfig

MOST_BYTES = 64 * MEBIBYTE
"""Of a file of load: a million layers and experts, and more."""


def read_load(file: Path) -> np.ndarray:
    """``load_LE`` (float64) from .npy, or from a load file of a run. Raises ``UserError``."""
    try:
        with open_regular(file) as opened:
            if os.fstat(opened.fileno()).st_size > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
            loaded = np.load(opened)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                if loaded.zip and loaded.zip.getinfo("asked_LE.npy").file_size > MOST_BYTES:
                    raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
                loaded = loaded["asked_LE"]
            load = np.asarray(loaded, np.float64)
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--load {file}: cannot read the load of experts from it: {error}. It should be a .npy"
            " file of numbers [layers, experts], or a load file of a run."
        ) from error
    return load[None] if load.ndim == 1 else load


LAST = 5
"""How many of a run's last intervals are read."""


def read_shares(source: Path | None, model: ModelConfig) -> np.ndarray:
    """The share of the choices that ask for each expert, ``share_LE``: from a load file, from the
    last intervals of a run, or all alike without a source. Raises ``UserError`` if the load is of
    another model.
    """
    L, E = sum(model.routed_blocks), model.moe.num_choices
    if source is None:
        return np.full((1, E), 1 / E)
    load_LE = _read_run(source) if source.is_dir() else read_load(source)
    check(
        load_LE.ndim == 2 and load_LE.shape[1] == E and load_LE.shape[0] in (1, L),
        f"--load {source} has {_describe_shape(load_LE)}, but the model {L} routed layers of {E}"
        f" experts: give the load of a run of this model, or leave --load out for an even one.",
    )
    total_L1 = load_LE.sum(1, keepdims=True)
    check(
        bool(np.isfinite(load_LE).all() and (load_LE >= 0).all() and (total_L1 > 0).all()),
        f"--load {source} must hold finite numbers that are not negative, and not only zeros in a"
        f" layer.",
    )
    return load_LE / total_L1


def _describe_shape(load_LE: np.ndarray) -> str:
    if load_LE.ndim != 2:
        return f"numbers of shape {load_LE.shape}"
    return f"{load_LE.shape[0]} layers of {load_LE.shape[1]} experts"


def _read_run(run: Path) -> np.ndarray:
    files = sorted((run / "load").glob("*.npz"))[-LAST:]
    if not files:
        raise UserError(f"--load {run}: there is no load/STEP.npz in it; is it a run's directory?")
    loads = [read_load(file) for file in files]
    if len({load.shape for load in loads}) > 1:
        raise UserError(f"--load {run}: its load files are of different models; name one of them.")
    return np.sum(loads, axis=0)
