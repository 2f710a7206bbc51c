"""Run a model over a sample, and collect which experts each token asks for."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.config.moe import MoEConfig
from moejax.inference.inference_config import inference_layout
from moejax.inference.open_model import OpenModel
from moejax.lab.specialisation.association import Choices
from moejax.lab.specialisation.sample import Sample
from moejax.models.decoder import DecoderLM
from moejax.moe.lying import lie_quantised
from moejax.runtime import batch_rows, partition


def check_routed(config: ModelConfig, path: Path) -> None:
    """Raise ``ConfigError`` for a model whose tokens choose nothing."""
    check(
        any(config.routed_layers),
        f"{path} has no routed layer: a dense model has no experts to look at.",
    )
    moe = config.moe
    check(
        not moe.built_router.slots,
        f"--model.moe.router {moe.router}: every slot holds a part of every token, so that no token"
        f" chooses an expert, and there is nothing to count.",
    )
    check(
        moe.built_router.experts_choose or moe.top_k < moe.num_choices,
        f"--model.moe.router {moe.router} with --model.moe.top-k {moe.top_k}: every token has every"
        f" expert, so that the choice tells nothing.",
    )


def name_experts(moe: MoEConfig) -> tuple[str, ...]:
    """The number of each expert; for experts without computation, with their kind before it."""
    kinds = (
        ("", moe.num_experts),
        ("identity ", moe.identity_experts),
        ("null ", moe.null_experts),
    )
    return tuple(f"{kind}{i}" for kind, count in kinds for i in range(count))


def collect_choices(
    model: OpenModel,
    config: ModelConfig,
    mesh: Mesh,
    sample: Sample,
    inputs_BN: np.ndarray,
    rows: int,
) -> Choices:
    """The experts that each token of the sample asks for, if the sample has these inputs. ``rows``
    sequences are run at a time.
    """
    decoder = DecoderLM(config, model.vocab_size, inference_layout(model.layout))
    everywhere = partition.activation_sharding(mesh, "everywhere")

    def run(params: dict, bias_LE: jax.Array | None, batch: dict[str, jax.Array]) -> jax.Array:
        found: Any = decoder.apply({"params": lie_quantised(params)}, batch, False, bias_LE)
        _, routed = found
        return jnp.packbits(routed.chosen_LBNE, axis=-1)

    step = jax.jit(run, out_shardings=everywhere)
    packed = []
    with jax.set_mesh(mesh):
        for begin in tqdm(range(0, len(inputs_BN), rows), disable=None, unit="batch", leave=False):
            part = slice(begin, begin + rows)
            batch = pad_batch(inputs_BN[part], sample.length_B[part], rows)
            chosen_LBNE = jax.device_get(
                step(model.params, model.bias_LE, batch_rows.place_batch(mesh, batch))
            )
            is_text_BN = sample.is_text_BN[part]
            packed.append(chosen_LBNE[:, : len(is_text_BN)][:, is_text_BN])
    return Choices(np.concatenate(packed, axis=1), config.moe.num_choices)


def pad_batch(inputs_BN: np.ndarray, length_B: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """A batch of ``rows`` sequences, one piece of the text in each; all else is padding."""
    inputs_BN = np.pad(inputs_BN, ((0, rows - len(inputs_BN)), (0, 0)))
    length_B = np.pad(length_B, (0, rows - len(length_B)))
    at_BN = np.arange(inputs_BN.shape[1]) * np.ones((rows, 1), np.int32)
    real_BN = (at_BN < length_B[:, None]).astype(np.int32)
    batch = {"inputs": inputs_BN, "segments": real_BN, "positions": at_BN * real_BN}
    return {name: x_BN.astype(np.int32) for name, x_BN in batch.items()}
