"""moejax: a Mixture-of-Experts laboratory and trainer for JAX.

The names below are for config files, studies and notebooks: ``from moejax import changed, Study``.
Each is imported when it is first used, so that ``import moejax`` and ``moejax --help`` are quick.
Everything else is imported from its own file. ``__init__.pyi`` tells the names to type checkers.
"""

import sys
from importlib import import_module
from typing import Any

from moejax.lab.study import library as study

__version__ = "0.1.0"

sys.modules["moejax.study"] = study  # for `from moejax.study import load`

_HOMES = {
    # Settings of a run; the other sections are in moejax.config.
    "Config": "moejax.config.config",
    "ModelConfig": "moejax.config.model",
    "MoEConfig": "moejax.config.moe",
    "BalanceConfig": "moejax.config.moe",
    # A config with some settings changed: changed(config, {"model.moe.top_k": 4}).
    "changed": "moejax.config.change",
    # The config of a Python file, or of a run's config.json.
    "load_config_file": "moejax.config.files",
    # The error whose message tells a user what to put right.
    "UserError": "moejax.config.errors",
    # Train a config in its run directory, and read what a run has written.
    "train_model": "moejax.train.training:train",
    "read_run": "moejax.runs.records",
    # What takes the lines of metrics beside their file: train_model(..., writers=[...]).
    "MetricsWriter": "moejax.train.metrics_writer",
    # A trained model: of a run, of an imported model, or of a checkpoint of Hugging Face.
    "open_model": "moejax.inference.opening",
    # A checkpoint of Hugging Face as parameters and settings.
    "load_checkpoint": "moejax.hf.reading:load",
    # Configs to train under equal conditions and to compare.
    "Study": "moejax.lab.study.definition",
    "load_study_file": "moejax.lab.study.definition",
    # Results of studies, read back: moejax.study.load(path).
    "study": "moejax.lab.study:library",
    # What a study of many sizes and lengths is made into: Study(..., analysis=Frontier()).
    "Frontier": "moejax.lab.frontier.analysis",
    # A router of one's own: the decorator that makes it known, what it sees, what it answers.
    "router": "moejax.routing.routers",
    "RouterInput": "moejax.routing.contract",
    "TokenChoice": "moejax.routing.contract",
    "ExpertChoice": "moejax.routing.contract",
    # The routed layer, as a Flax module.
    "MoELayer": "moejax.moe.layer",
}
"""Where each public name is at home: its file, and its name there if that is another."""

__all__ = [
    "BalanceConfig",
    "Config",
    "ExpertChoice",
    "Frontier",
    "MetricsWriter",
    "MoEConfig",
    "MoELayer",
    "ModelConfig",
    "RouterInput",
    "Study",
    "TokenChoice",
    "UserError",
    "changed",
    "load_checkpoint",
    "load_config_file",
    "load_study_file",
    "open_model",
    "read_run",
    "router",
    "study",
    "train_model",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is used for the first time."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file, _, inner = _HOMES[name].partition(":")
    globals()[name] = value = getattr(import_module(file), inner or name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
