"""`moejax upcycle`: a routed model of a dense one that computes the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import tyro

from moejax import hf
from moejax.commands.describe_import import describe_import
from moejax.config.checks import check
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.hf.peft import refuse_adapters
from moejax.hf.upcycle import upcycle, upcycle_config
from moejax.hf.writing import new_directory
from moejax.inference import imported
from moejax.models.counts import parameters
from moejax.runtime.room import check_room, count_bytes


@dataclass(frozen=True, kw_only=True)
class UpcycleSettings:
    """Make a routed model of a dense one (Llama, Mistral or Qwen3) that computes the same."""

    source: tyro.conf.Positional[Path]
    """Directory with config.json and safetensors of a dense model."""
    target: tyro.conf.Positional[Path]
    """New directory, as `moejax import` writes it."""
    num_experts: int = 8
    """Experts in a routed layer."""
    top_k: int = 2
    """Experts that a token chooses."""
    split: int = 1
    """Cut each copy of the dense network into so many experts."""
    every: int = 1
    """Every n-th layer gets experts."""
    noise: float = 0.0
    """Noise on the experts, over the standard deviation of their matrices."""
    seed: int = 0
    """Of routers and noise."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the parameters; `auto` keeps that on disk."""
    allow_not_finite: tyro.conf.FlagConversionOff[bool] = False
    """Go on with weights that are NaN or infinite."""


def upcycle_model(settings: UpcycleSettings) -> None:
    """Read, upcycle and write, and say so. Raises ``UserError``."""
    check(settings.noise >= 0, f"--noise must be at least 0, not {settings.noise}.")
    check(0 <= settings.seed < 2**31, f"--seed must lie in [0, 2**31), not {settings.seed}.")
    refuse_adapters(settings.source)
    with new_directory(settings.target) as place:
        model = _convert(settings, place)
    print(describe_import(*model, settings.target), flush=True)


def _check_room(config: ModelConfig, params: dict) -> None:
    """The new model must fit beside the old one."""
    assert config.vocab_size is not None  # as in every checkpoint
    leaves = jax.tree.leaves(params)
    itemsize = min(leaf.dtype.itemsize for leaf in leaves)
    check_room(
        count_bytes(leaves) + itemsize * sum(parameters(config, config.vocab_size).values()),
        "the new model, beside the old one,",
        f"Make --num-experts {config.moe.num_experts} smaller, or --every larger, so that fewer"
        f" layers get experts.",
    )


def _convert(settings: UpcycleSettings, place: Path) -> tuple[str, ModelConfig]:
    """Returns what it was and is, in words, and the settings."""
    dense = hf.load(settings.source, settings.dtype, allow_not_finite=settings.allow_not_finite)
    config = upcycle_config(
        dense.config,
        num_experts=settings.num_experts,
        top_k=settings.top_k,
        split=settings.split,
        every=settings.every,
    )
    _check_room(config, dense.params)
    params = upcycle(
        dense.config,
        dense.params,
        config,
        split=settings.split,
        noise=settings.noise,
        seed=settings.seed,
    )
    imported.write_model(
        place,
        config,
        params,
        None,
        layout=MeshConfig(),
        hf=dense.hf,
        files_from=settings.source,
        name=settings.target,
    )
    return f"{dense.hf['model_type']}, upcycled", config
