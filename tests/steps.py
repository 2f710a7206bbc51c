"""The first state and the training step of a tiny decoder, as several tests want them."""

import functools
from collections.abc import Callable

import optax

from moejax.config import Config
from moejax.models.decoder import DecoderLM
from moejax.train.optimizer import make_schedule
from moejax.train.state import init_state
from moejax.train.step import train_step


def make_parts(
    config: Config, optimizer: optax.GradientTransformation
) -> tuple[Callable, Callable]:
    """``begin() -> state`` and ``step(state, batch) -> (state, report)``, neither compiled."""
    model = DecoderLM(config.model, 257, config.mesh)
    shape = make_schedule(config.optim, config.run.steps)
    begin = functools.partial(init_state, model, optimizer, config)
    step = functools.partial(
        train_step, model=model, optimizer=optimizer, shape=shape, config=config
    )
    return begin, step
