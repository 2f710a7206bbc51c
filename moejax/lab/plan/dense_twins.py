"""Dense models of the same size as a routed one."""

from collections.abc import Iterator
from dataclasses import dataclass

from jax.sharding import AbstractMesh

from moejax.config.change import changed
from moejax.config.config import Config
from moejax.config.errors import ConfigError
from moejax.config.model import ModelConfig
from moejax.lab.plan.memory import plan_memory
from moejax.models.counts import active_parameters, cost, parameters
from moejax.runtime.number_words import short


@dataclass(frozen=True)
class Twin:
    """A dense model of the same active, or the same total, size as a routed one."""

    key: str
    hidden: int
    """Hidden width of its dense layers."""
    parameters: int
    flops_per_token: int
    peak: float | None
    """Bytes on a device in training; None if the mesh does not divide its width."""
    why: str


def dense_twins(config: Config, vocab_size: int, grid: AbstractMesh) -> Iterator[Twin]:
    """The dense models of equal active and of equal total size; all of their layers are alike."""
    model = config.model
    for key, wanted in (
        ("of_equal_active_size", sum(active_parameters(model, vocab_size).values())),
        ("of_equal_total_size", sum(parameters(model, vocab_size).values())),
    ):
        hidden = dense_hidden(model, vocab_size, wanted, grid.shape["model"])
        dense = dense_model(model, hidden)
        price = cost(dense, vocab_size, config.data.sequence_length)
        try:
            peak = plan_memory(changed(config, {"model": dense}), vocab_size, grid).peak
        except ConfigError:
            peak = None
        why = f"so wide that {model.num_layers} dense layers and all else are {short(wanted)}"
        yield Twin(key, hidden, price.parameters_total, price.flops_per_token, peak, why)


def dense_hidden(model: ModelConfig, vocab_size: int, wanted: int, parts: int) -> int:
    """The hidden width at which the dense model has about the wanted number of parameters."""
    narrow, wide = (
        sum(parameters(dense_model(model, hidden), vocab_size).values())
        for hidden in (parts, 2 * parts)
    )
    each = (wide - narrow) / parts
    return max(1, round((wanted - narrow) / each / parts + 1)) * parts


def dense_model(model: ModelConfig, hidden: int) -> ModelConfig:
    """The model without routing, with dense layers of this hidden width."""
    return changed(model, {"moe.every": 0, "moe.first_dense": 0, "dense_hidden_size": hidden})
