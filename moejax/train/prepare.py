"""What a run computes with: its model, its optimizer, and the compiled functions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh

import moejax
from moejax.config.config import Config
from moejax.config.files import flatten, to_dict
from moejax.models.adapters import adapt, attach
from moejax.models.by_kind import build
from moejax.models.classifier import ImageClassifier
from moejax.models.decoder import DecoderLM
from moejax.runtime import device_mesh, partition, pieces
from moejax.train.eval_step import eval_step
from moejax.train.forward import Batch
from moejax.train.masters import gather_masters
from moejax.train.offload import lay_state
from moejax.train.optimizer import make_optimizer, make_schedule
from moejax.train.reports import StepReport
from moejax.train.state import TrainState, init_state
from moejax.train.step import train_step
from moejax.train.tasks import Task
from moejax.train.telemetry import router_arrays


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model and how it learns."""

    model: DecoderLM | ImageClassifier
    optimizer: optax.GradientTransformation
    init: Callable[[], TrainState]
    """Makes the state before the first step."""
    shardings: TrainState
    """How each array of the state lies on the mesh."""

    @property
    def like(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        return partition.set_shardings(jax.eval_shape(self.init), self.shardings)


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The functions of a run that are compiled, each once."""

    step: Callable
    compile_step: Callable
    """Compiles the step for a state and a batch, and returns the compiled program; the first call
    of ``step`` compiles nothing then."""
    eval_step: Callable
    first_choices: Callable
    router_arrays: Callable
    complete: Callable[[dict], dict]
    """All parameters of the model, from those that are trained."""


def make_learner(config: Config, vocab_size: int, mesh: Mesh) -> Learner:
    """The model and the optimizer of the settings, laid out on ``mesh``."""
    model = build(config.model, vocab_size, config.mesh)
    optimizer = make_optimizer(config.optim)
    init = partial(init_state, model, optimizer, config)
    shardings = lay_state(config, jax.eval_shape(init), mesh)
    return Learner(model=model, optimizer=optimizer, init=init, shardings=shardings)


def make_step(
    config: Config, model: nn.Module, optimizer: optax.GradientTransformation
) -> Callable[[dict | None, TrainState, Batch], tuple[TrainState, StepReport]]:
    """One update, of the parameters that stay as they are (or None), the state and a batch."""

    def step(base: dict | None, state: TrainState, batch: Batch) -> tuple[TrainState, StepReport]:
        return train_step(
            state,
            batch,
            model=adapt(model, base, config.run.lora),
            optimizer=optimizer,
            shape=make_schedule(config.optim, config.run.steps),
            config=config,
        )

    return step


def make_programs(
    config: Config, learner: Learner, mesh: Mesh, base: dict | None = None
) -> Programs:
    """The functions of a run; each is compiled when it is first called. With adapters, ``base`` are
    the parameters that stay as they are; without, there are none.
    """
    shardings, lora = learner.shardings, config.run.lora
    batch_sharding = partition.activation_sharding(mesh, "batch_BN")
    everywhere = partition.activation_sharding(mesh, "everywhere")
    options = device_mesh.compiler_options(config.mesh, device_mesh.platform())

    def evaluate(base: dict | None, params: dict, *args: Any) -> Any:
        model = adapt(learner.model, base, lora)
        return eval_step(gather_masters(params, config), *args, model=model)

    def complete(params: dict) -> dict:
        return params if base is None else attach(base, params, lora.scale)

    whole = partial(pieces.join, pieces=config.mesh.context)
    compiled_step = jax.jit(
        make_step(config, learner.model, learner.optimizer),
        in_shardings=(None, shardings, batch_sharding),
        out_shardings=(shardings, everywhere),
        donate_argnums=1,
        compiler_options=options or None,
    )
    compiled_eval_step = jax.jit(
        evaluate,
        in_shardings=(None, shardings.params, shardings.bias_LE, batch_sharding),
        out_shardings=(everywhere, None, everywhere),
    )
    compiled_arrays = jax.jit(partial(router_arrays, config=config.model), out_shardings=everywhere)
    return Programs(
        step=partial(compiled_step, base),
        compile_step=lambda state, batch: compiled_step.lower(base, state, batch).compile(),
        eval_step=partial(compiled_eval_step, base),
        first_choices=jax.jit(
            lambda chosen_LBNE, rows, positions: jax.vmap(whole)(chosen_LBNE)[:, :rows, :positions],
            static_argnums=(1, 2),
            out_shardings=everywhere,
        ),
        router_arrays=lambda params, bias_LE: compiled_arrays(complete(params), bias_LE),
        complete=complete,
    )


def shared_settings(config: Config, task: Task) -> dict[str, Any]:
    """What must be the same in all processes, or they would train different runs."""
    values = to_dict(config)
    del values["distributed"], values["data"]["directory"]
    return flatten(values) | {
        **task.identity,
        "the version of jax": jax.__version__,
        "the version of moejax": moejax.__version__,
    }
