"""What the experts of a model do on a text, in numbers that say which to keep.

For a router whose weights multiply what experts give, the weighted norm of expert e for a token is
its weight times the norm of its output.
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from moejax.config.model import ModelConfig
from moejax.data.batches import Batch
from moejax.inference.inference_config import inference_layout
from moejax.inference.open_model import OpenModel
from moejax.models.decoder import DecoderLM
from moejax.moe.choose_travel import choose_travel
from moejax.moe.experts import take_bank
from moejax.moe.layer import ROUTES, MoELayer, fit_route
from moejax.routing.contract import Choice, RouterInput, TokenChoice, spread
from moejax.runtime import batch_rows, partition

By = Literal["reap", "load", "norm", "random"]


def score_experts(sums_L3E: np.ndarray, by: By, seed: int = 0) -> np.ndarray:
    """``score_LE`` of ``sum_experts``; experts of low scores are pruned.

    ``reap``: the mean of the weighted norms over the tokens that chose the expert (REAP, Lasby
    et al. 2025), 0 if none did. ``load``: how many these are. ``norm``: the sum of the norms
    without weights. ``random``: drawn with ``seed``.
    """
    count_LE, norm_LE, weighted_LE = np.moveaxis(sums_L3E, 1, 0)
    if by == "random":
        return np.random.default_rng(seed).random(count_LE.shape)
    if by == "reap":
        return weighted_LE / np.maximum(count_LE, 1)
    return count_LE if by == "load" else norm_LE


def sum_experts(
    model: OpenModel, config: ModelConfig, mesh: Mesh, batches: Sequence[Batch]
) -> np.ndarray:
    """``sums_L3E`` (float64): of each routed layer's experts the tokens that chose it, the norms of
    what it gave them, and its weighted norms, added up over batches. ``config``: how the model is
    run; without drops.
    """
    decoder = DecoderLM(config, model.vocab_size, inference_layout(model.layout))

    def run(params: dict, bias_LE: jax.Array | None, batch: dict[str, jax.Array]) -> jax.Array:
        with nn.intercept_methods(Measure()):
            found: Any = decoder.apply({"params": params}, batch, False, bias_LE)
        return found[1].chosen_LBNE

    step = jax.jit(run, out_shardings=partition.activation_sharding(mesh, "everywhere"))
    sums_L3E = np.zeros(())
    with jax.set_mesh(mesh):
        for batch in tqdm(batches, disable=None, unit="batch", leave=False):
            own = {name: batch[name] for name in ("inputs", "segments", "positions")}
            placed = batch_rows.place_batch(mesh, own)
            sums_L3E = sums_L3E + np.asarray(step(model.params, model.bias_LE, placed), np.float64)
    return sums_L3E


class Measure:
    """Around each routed layer: in the place of the experts that tokens chose, the sums."""

    def __init__(self) -> None:
        self._sums: list[jax.Array] = []

    def __call__(self, next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """What ``flax.linen.intercept_methods`` wants."""
        found = next_function(*args, **kwargs)
        if not isinstance(context.module, MoELayer):
            return found
        if context.method_name == "_experts":  # which the layer itself calls with what it chose
            self._sums.append(_sum_of_layer(context.module, *args[:3]))
        if context.method_name != "run":
            return found
        y_BND, stats, _, expert_BNK = found
        return y_BND, stats, self._sums.pop(), expert_BNK


def _sum_of_layer(
    layer: MoELayer, choice: Choice, x_GSD: jax.Array, inputs: RouterInput
) -> jax.Array:
    """``sums_3E`` of one layer: each choice of a token is run by itself."""
    moe, real_GS, E = layer.config, inputs.real_GS, layer.config.num_experts
    assert isinstance(choice, TokenChoice)
    bank = take_bank(layer.variables["params"])
    bank = {name: p.astype(x_GSD.dtype) for name, p in bank.items()}
    travel = choose_travel(
        moe, layer.layout, bank, x_GSD, activation=layer.activation, capacity=moe.group_size
    )
    bank = fit_route(bank, travel, x_GSD.dtype)
    sums_3E = jnp.zeros((3, E))
    for k in range(moe.top_k):
        expert_GS1, weight_GS1 = (
            array[..., k : k + 1] for array in (choice.expert_GSK, choice.weight_GSK)
        )
        there_GS1 = (expert_GS1 >= 0) & (expert_GS1 < E) & real_GS[..., None]
        expert_GS1 = jnp.where(there_GS1, expert_GS1, -1)
        by_input = choice.weigh == "input"
        alone = TokenChoice(
            expert_GS1,
            weight_GS1 if by_input else jnp.ones_like(weight_GS1),
            choice.probability_GSE,
            weigh=choice.weigh,
        )
        y_GSD, _ = ROUTES[travel.route](bank, x_GSD, alone, real_GS, travel=travel)
        norm_GS1 = jnp.linalg.norm(y_GSD.astype(jnp.float32), axis=-1, keepdims=True)
        weighted_GS1 = norm_GS1 if by_input else norm_GS1 * weight_GS1
        for row, value_GS1 in enumerate((jnp.ones_like(norm_GS1), norm_GS1, weighted_GS1)):
            sums_3E = sums_3E.at[row].add(spread(expert_GS1, value_GS1, E).sum((0, 1)))
    return sums_3E
