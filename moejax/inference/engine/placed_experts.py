"""The experts of a model that serves, in places that change between two calls of it.

From the start there are as many places as there ever will be: nothing is compiled again.

Letters: P: places of experts and replicas; R: replicas of an expert.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.inference.engine.runner import PageRunner
from moejax.inference.inference_config import check_can_generate
from moejax.inference.open_model import OpenModel
from moejax.inference.replicate import replicate
from moejax.models.layer_runs import get_stack, set_stack, stack_layers
from moejax.moe.experts import take_bank
from moejax.moe.lying import hold
from moejax.moe.parallel.move import make_move
from moejax.moe.parallel.placement import MOST_PLACES, Placement, place
from moejax.moe.parallel.replan import Copies, plan_copies
from moejax.moe.parallel.replicas import list_places


@dataclass(frozen=True)
class LayerMove:
    """A layer whose experts go to other places."""

    layer: int
    expert_P: np.ndarray
    place_ER: np.ndarray
    copies: Copies


def add_places(
    model: OpenModel, mesh: Mesh, replicas: int | None
) -> tuple[OpenModel, np.ndarray, jax.Array]:
    """A model with so many places for experts in each layer, by default one more on each device
    than its experts need; the expert in each, ``expert_LP``; and ``place_LER``. The model that is
    given is of no more use. Raises ``ConfigError`` if there are no experts, or places for none.
    """
    config, devices = model.config, mesh.shape["expert"]
    check_can_generate(config)
    E, L = config.moe.num_experts, sum(config.routed_blocks)
    check(L > 0, "--rebalance moves experts, and this model has none: leave it out.")
    places = E + devices if replicas is None else replicas
    most = min(devices * E, MOST_PLACES // L // devices * devices)
    check(
        E <= places <= most,
        f"--replicas {places} must lie in {E:,} to {most:,}: each of {E:,} experts needs a place,"
        f" and each of {devices} devices no expert twice, in {L} layers.",
    )
    plan = place(np.ones((L, E)), devices=devices, places=places)
    with jax.set_mesh(mesh):
        params = hold(model.params)  # arrays of their own come of it, which may be overwritten
    params, _ = replicate(config, params, plan, mesh, model.layout.fsdp, free=True)
    place_LER = lay_everywhere(list_places(plan, 1 + places - E), mesh)
    return replace(model, params=params), plan.expert_LP, place_LER


def lay_everywhere(place_LER: np.ndarray, mesh: Mesh) -> jax.Array:
    """Places as the calls of a model take them."""
    return jax.device_put(place_LER, NamedSharding(mesh, P()))


class PlacedExperts:
    """Where the experts of a runner's model are. All but ``move`` may be called in any thread."""

    def __init__(
        self, runner: PageRunner, config: ModelConfig, mesh: Mesh, expert_LP: np.ndarray
    ) -> None:
        self.runner, self.devices = runner, mesh.shape["expert"]
        self.expert_LP, self.experts = expert_LP, config.moe.num_experts
        self._mesh = mesh
        self._stacks = {
            layer: (stack, np.int32(repeat))
            for stack in stack_layers(replace(config, next_tokens=0))
            for repeat, layer in enumerate(stack.routed or ())
        }
        self._place_LER = np.array(runner.weights[2])

    @property
    def layers(self) -> int:
        """Layers whose experts can move."""
        return len(self._stacks)

    def plan(self, layer: int, expert_P: np.ndarray) -> LayerMove:
        """What leads to these places."""
        plan = Placement(expert_P[None], np.zeros((1, self.devices)))
        (place_ER,) = list_places(plan, self._place_LER.shape[2])
        copies = plan_copies(self.expert_LP[layer], expert_P, self.devices)
        return LayerMove(layer, expert_P, place_ER, copies)

    def warm(self) -> None:
        """Compile what moves experts, by moving none."""
        for layer in range(self.layers):
            self.move(self.plan(layer, self.expert_LP[layer]))

    def move(self, wanted: LayerMove) -> None:
        """Go on with other places from the next call of the model, which waits for the copies.
        Between two calls, in the thread that makes them.
        """
        layer, copies = wanted.layer, wanted.copies
        stack, repeat = self._stacks[layer]
        params, bias_LE, _ = self.runner.weights
        block = get_stack(params, stack)

        def change(w: jax.Array) -> jax.Array:
            sharding: Any = w.sharding
            return make_move(sharding)(w, repeat, *copies.arrays)

        bank = jax.tree.map(change, take_bank(block["moe"]))
        params = set_stack(params, stack, block | {"moe": block["moe"] | bank})
        self._place_LER, self.expert_LP = self._place_LER.copy(), self.expert_LP.copy()
        self._place_LER[layer], self.expert_LP[layer] = wanted.place_ER, wanted.expert_P
        self.runner.set_weights(params, bias_LE, lay_everywhere(self._place_LER, self._mesh))
