"""Generation in Hugging Face transformers, with the weights of ours."""

import inspect
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import Mesh
from transformers import AutoModelForCausalLM, DynamicCache

from moejax import hf
from moejax.config.config import Config
from moejax.config.errors import UserError
from moejax.hf.reading import Pretrained
from moejax.lab.bench.generation_times import Timed
from moejax.lab.bench.torch_layers import use_all_cores

LIMITS = {"float32": 1e-3, "bfloat16": 5e-2}
"""The largest difference of logits, as a share of the largest logit."""
COMPARED = 16
"""Positions of the text on which both are compared."""


class Transformers:
    """Generation by a model of transformers and its cache, always the best token."""

    def __init__(self, model: Any) -> None:
        self._model = model
        named = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in named else "past_key_values"  # its older name

    @torch.inference_mode()
    def __call__(self, prompt_BN: np.ndarray, tokens: int) -> Timed:
        cache: Any = {self._cache_name: DynamicCache(config=self._model.config)}

        def extend(token_BN: torch.Tensor) -> torch.Tensor:
            said = self._model(token_BN, use_cache=True, logits_to_keep=1, **cache)
            return said.logits[:, -1:].argmax(-1)

        token_BN = torch.from_numpy(prompt_BN.astype(np.int64))
        start = time.perf_counter()
        token_B1 = extend(token_BN)
        first = time.perf_counter()
        for _ in range(tokens - 1):
            token_B1 = extend(token_B1)
        return Timed(first - start, (time.perf_counter() - first) / (tokens - 1))

    @torch.inference_mode()
    def logits(self, token_BN: np.ndarray) -> np.ndarray:
        """The logits of all positions, float32."""
        return self._model(torch.from_numpy(token_BN.astype(np.int64))).logits.float().numpy()


def build_peer(
    config: Config, params: dict, fields: dict[str, Any] | None, mesh: Mesh
) -> tuple[Transformers, float]:
    """The same model in transformers, and how far its logits are from ours, as a share of the
    largest. Raises ``UserError`` if they differ, or if no family of theirs holds the model.
    """
    if jax.default_backend() != "cpu":
        raise UserError("--peers compares on CPUs: PyTorch is not run on accelerators here.")
    use_all_cores()
    dtype = config.model.dtype
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        hf.save(place, config.model, params, hf=fields)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype))
    peer = Transformers(model.eval())
    token_BN = np.random.default_rng(1).integers(0, config.model.vocab_size or 2, (1, COMPARED))
    ours = Pretrained(config.model, params, None, {}, Path(), mesh, config.mesh)
    ours_BNV = np.asarray(ours.apply(params, jnp.asarray(token_BN, jnp.int32)))
    theirs_BNV = peer.logits(token_BN)
    difference = float(np.abs(ours_BNV - theirs_BNV).max() / np.abs(theirs_BNV).max())
    if difference > LIMITS[dtype]:
        raise UserError(
            f"the logits of transformers differ from ours by {difference:.1e} of the largest, more"
            f" than {LIMITS[dtype]:.0e}: nothing was timed. Please report this model."
        )
    return peer, difference
