"""Moments of the optimizer that wait in the host's memory between updates."""

from dataclasses import replace
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from moejax.config.config import Config
from moejax.runtime import partition
from moejax.train.state import TrainState


def lay_state(config: Config, like: TrainState, mesh: Mesh) -> TrainState:
    """How each array of a run's state lies on the mesh; moments in the host's memory, pinned, where
    ``optim.offload`` wants it. ``like`` has their shapes.
    """
    shardings = partition.tree_shardings(mesh, like, config.mesh.spreads)
    if not config.optim.offload:
        return shardings

    def move(sharding: NamedSharding, x: Any) -> NamedSharding:
        return sharding.with_memory_kind("pinned_host") if x.ndim else sharding

    return replace(shardings, optimizer=jax.tree.map(move, shardings.optimizer, like.optimizer))


def fetch_moments(grads: dict, optimizer: optax.OptState) -> tuple[dict, optax.OptState]:
    """The moments on the device, once there are gradients, and not before."""
    grads, optimizer = jax.lax.optimization_barrier((grads, optimizer))
    return grads, put_moments(optimizer, jax.memory.Space.Device)


def put_moments(optimizer: optax.OptState, space: Any) -> optax.OptState:
    """The state with its moments in another memory of the same devices."""
    return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, optimizer)
