"""Experts follow the load while texts are served: a thread beside the engine plans, and the engine
moves the experts of one layer at a time between two calls of the model.

Letters: P: places of experts and replicas; Q: devices that hold experts.
"""

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.inference.engine.engine import Engine, StoppedError
from moejax.inference.engine.placed_experts import PlacedExperts
from moejax.inference.engine.runner import PageRunner
from moejax.inference.engine.stats import Balance
from moejax.moe.parallel.replan import replan, spread_load, weigh_layers

MOST_SECONDS = 10**6
FADES = 0.5
"""Load of earlier intervals counts so much less with each: that of the last two or three decides.
"""


@dataclass(frozen=True, kw_only=True)
class RebalanceSettings:
    """Whether experts move to where there is less load."""

    rebalance: float | None = None
    """Every so many seconds, experts get places and replicas anew, by the load of the last minutes;
    by default they stay where they are. It needs --mesh.expert 2 or more."""
    replicas: int | None = None
    """With --rebalance: experts on all devices together, with replicas, as in `moejax plan
    placement`; by default one more on each device than there would be without."""

    def __post_init__(self) -> None:
        seconds = self.rebalance
        check(
            seconds is None or 0 < seconds <= MOST_SECONDS,
            f"--rebalance must be greater than 0 and at most {MOST_SECONDS:,} seconds, not"
            f" {seconds}.",
        )
        check(
            self.replicas is None or self.replicas > 0,
            f"--replicas must be greater than 0, not {self.replicas}.",
        )
        check(
            self.replicas is None or seconds is not None,
            f"--replicas {self.replicas} has no effect without --rebalance: give --rebalance 60,"
            f" say, too, or leave it out.",
        )

    def check_devices(self, devices: int) -> None:
        """Raise ``ConfigError`` if so many devices cannot hold experts that move."""
        if self.rebalance is None:
            return
        check(
            devices > 1,
            "--rebalance moves experts between devices, and all of them are on every device: give"
            " --mesh.expert 2 or more, or leave it out.",
        )
        places = self.replicas or devices
        check(
            places % devices == 0,
            f"--replicas {places} is not divisible by --mesh.expert {devices}: each device has as"
            f" many.",
        )


class Rebalancer:
    """While it is open, experts move every so many ``seconds``, if it is worth it; ``say`` gets a
    line of each move. Close it before the engine.
    """

    def __init__(
        self,
        engine: Engine,
        placed: PlacedExperts,
        seconds: float,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self._engine, self._placed, self._seconds, self._say = engine, placed, seconds, say
        self._asked_LE = np.zeros((placed.layers, placed.experts), np.int64)
        self._load_LE = np.zeros(self._asked_LE.shape)
        self._balance = Balance(now_LQ=np.zeros((placed.layers, placed.devices)))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="rebalance", daemon=True)

    def __enter__(self) -> "Rebalancer":
        self._engine.between_steps(self._placed.warm).result()
        self._engine.balance = self._balance
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._closed.wait(self._seconds):
                self.turn()
        except StoppedError:
            pass  # whoever closed it, or reads texts, knows of it
        except Exception as error:  # texts go on without
            self._say(f"experts stay where they are from now on: {error!r}")

    def turn(self) -> None:
        """Look at the load, and move experts if it is worth it. Other threads may submit texts."""
        placed, engine = self._placed, self._engine
        asked_LE = engine.between_steps(placed.runner.load_LE).result()
        assert asked_LE is not None  # as there are routed layers
        asked_LE = asked_LE[:, : placed.experts]
        new_LE, self._asked_LE = asked_LE - self._asked_LE, asked_LE
        self._load_LE = FADES * self._load_LE + new_LE
        before_LP = placed.expert_LP[: placed.layers]
        if new_LE.any():
            now_LQ = spread_load(new_LE, before_LP, placed.devices)
            self._balance = engine.balance = self._balance.at(now_LQ)
        after_LP = replan(self._load_LE, before_LP, placed.devices)
        layers = np.flatnonzero((after_LP != before_LP).any(1))
        if not layers.size:
            return
        copied = 0
        for layer in layers.tolist():
            move = placed.plan(layer, after_LP[layer])
            # The next one is ordered when this one is done, so a step comes between them.
            engine.between_steps(partial(placed.move, move)).result()
            copied += move.copies.experts
        before_LQ, after_LQ = (
            spread_load(self._load_LE, x_LP, placed.devices) for x_LP in (before_LP, after_LP)
        )
        self._balance = engine.balance = self._balance.moved(before_LQ, after_LQ, copied)
        self._say(
            f"{copied} experts moved in {layers.size} of {placed.layers} layers: mean over largest"
            f" load of devices {weigh_layers(before_LQ):.3f} -> {weigh_layers(after_LQ):.3f}"
        )


def follow_load(
    engine: Engine,
    config: ModelConfig,
    mesh: Mesh,
    expert_LP: np.ndarray | None,
    seconds: float | None,
) -> AbstractContextManager:
    """A ``Rebalancer`` of a model with places (``add_places``); without ``seconds``, nothing."""
    if expert_LP is None or seconds is None:
        return nullcontext()
    assert isinstance(engine.runner, PageRunner)
    return Rebalancer(engine, PlacedExperts(engine.runner, config, mesh, expert_LP), seconds)
