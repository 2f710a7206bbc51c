"""What lies in a device's memory: what stays, and what a training step adds at its peak.

Letters: X: an embedding and a hidden state, side by side.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.extend
from jax.sharding import AbstractMesh

from moejax.config.config import Config
from moejax.lab.plan.device_parameters import (
    Parameter,
    largest_layer,
    local_parameters,
    optimizer_bytes,
    parameter_shapes,
    trained_shapes,
)
from moejax.lab.plan.layer_bytes import layer_workspace
from moejax.lab.plan.residuals import saved_bytes
from moejax.lab.plan.step_sizes import FLOAT, StepSizes, size_step
from moejax.models.adapters import find_weights
from moejax.models.head_loss import chunk_size
from moejax.models.kv_pages import empty_pool
from moejax.models.used_types import cast_shapes
from moejax.moe.quantise_params import quantise_shapes
from moejax.moe.quantised import is_quantised
from moejax.runtime.partition import TOKENS, parameter_spec
from moejax.runtime.room import count_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they are for."""

    state: dict[str, float]
    """What is there before and after a step."""
    moments: dict[str, dict[str, float]]
    """What else is there at the moments of a step that may be its peak."""
    host: dict[str, float]
    """What waits in the host's memory."""

    @property
    def peak(self) -> float:
        """The state and the largest moment."""
        return sum(self.state.values()) + max(sum(m.values()) for m in self.moments.values())

    @property
    def peak_moment(self) -> str:
        """The name of the largest moment."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))


def plan_memory(config: Config, vocab_size: int, grid: AbstractMesh) -> Memory:
    """What a training step holds on a device of the mesh.

    The peak is at one of three moments: at the loss, with the logits of a chunk of tokens, the
    gradients that they give and all that the layers saved; in the backward pass through a layer,
    with all gradients and the layer's own intermediate values in place of the logits; or at the
    update. Before a loop over layers, the parameters of all of them are converted to the type of
    products.
    """
    with jax.sharding.use_abstract_mesh(grid):
        step = size_step(config, vocab_size)
    shapes, lora = parameter_shapes(config, vocab_size), config.run.lora
    parameters = local_parameters(config, shapes, grid, lora.rank is not None)
    trained, frozen = parameters, 0.0
    if lora.rank is not None:
        trained = local_parameters(config, trained_shapes(config, shapes), grid)
        frozen = frozen_bytes(config, shapes, parameters)
    remat, B = config.model.remat, step.itemsize
    layers = [p for p in trained if p.layers]
    head = ("embedding_VD" if config.model.tie_embeddings else "w_head_DV", "w_merge_XD")
    rest = sum(p.gathered for p in parameters if p.name in head)
    narrow = B if B < FLOAT else 0
    weights = FLOAT * sum(p.size for p in trained)
    state = {"frozen weights": frozen} if frozen else {}
    state |= {"weights": weights}
    kept = {f"optimizer, {k}": v for k, v in optimizer_bytes(config, trained).items()}
    copies = narrow * (sum(p.size for p in layers) + (0 if frozen else rest))
    if config.mesh.zero1:
        copies = B * (sum(p.gathered for p in layers) + (0 if frozen else rest))
    in_layers = [p for p in parameters if p.layers]
    gathered = 2 * B * largest_layer(in_layers, "gathered") if config.mesh.fsdp else 0.0
    added_up = FLOAT * largest_layer([p for p in layers if p.copies > 1], "size")
    saved, host = saved_bytes(config, step, remat), {}
    if remat == "offload":
        host, saved = {"saved for backward, on the host": saved}, 0.0
    if config.optim.offload:
        host |= {f"{name}, on the host": size for name, size in kept.items()}
    else:
        state |= kept
    moments = {
        "loss": {
            "saved for backward": saved,
            "copies of weights": copies,
            **loss_workspace(config, step),
        },
        "backward": {
            "gradients": FLOAT * sum(p.size for p in trained if p.name != "embedding_VD"),
            "gradients on their way": added_up,
            "copies of weights": copies,
            "gathered weights": gathered,
            "saved for backward": saved,
            "residual stream, mask": step.T
            * (2 * step.D * B + step.N * (step.attention == "dense")),
        }
        | layer_workspace(config, step),
        "update": {"gradients": FLOAT * sum(p.size for p in trained)}
        | (kept if config.optim.offload else {}),
    }
    moments = {m: {k: v for k, v in has.items() if v} for m, has in moments.items()}
    return Memory(state, moments, host)


def loss_workspace(config: Config, step: StepSizes) -> dict[str, float]:
    """What the loss needs (see ``models.head_loss``): the logits of a chunk, in float32 and as
    probabilities in the type of products; the gradient of the head, added up in float32; and of
    each module the states that the head reads, and their gradient.
    """
    modules, V = 1 + config.model.next_tokens, step.vocabulary
    narrow = step.itemsize if step.itemsize < FLOAT else 0
    frozen = config.run.lora.rank is not None
    return {
        "logits of a chunk": chunk_size(step.T, V) * V * (FLOAT + narrow),
        "gradient of the head": 0 if frozen else FLOAT * step.D * V,
        "states and their gradient": 2 * modules * step.T * step.D * step.itemsize,
    }


def frozen_bytes(config: Config, shapes: dict, parameters: list[Parameter]) -> float:
    """Bytes of parameters that stay as they are, in the types in which they are used."""
    weights = find_weights(config.run.lora)
    like = cast_shapes(shapes, config.model)
    leaves = jax.tree.leaves(quantise_shapes(like, weights), is_leaf=is_quantised)
    sizes = [count_bytes(jax.tree.leaves(leaf)) / leaf.size for leaf in leaves]
    return sum(p.size * size for p, size in zip(parameters, sizes, strict=True))


def cache_bytes(config: Config, sequences: int, context: int, grid: AbstractMesh) -> float:
    """Bytes of the keys and values of a device's share of sequences of ``context`` positions."""
    sizes = dict(grid.shape)
    here = math.ceil(sequences / math.prod(sizes[axis] for axis in TOKENS))
    model = replace(config.model, next_tokens=0)
    pool = jax.eval_shape(lambda: empty_pool(model, 1, here, here * context, 1, None))
    return sum(
        x.size
        * x.dtype.itemsize
        / (sizes["model"] if "model" in parameter_spec(name, False) else 1)
        for cache in pool
        for name, x in cache.items()
    )
