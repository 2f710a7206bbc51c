"""A model that is called with rows of tokens, and keeps its texts in pages.

Letters: F: what a call says of a row, side by side; L: routed layers; P: modules that make
drafts; S: seats of a lane; X: lanes, or the best tokens that scores are given of.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.inference.engine.ahead import Window, draft_ahead
from moejax.inference.engine.calls import Call, Drawn, Sizes
from moejax.inference.engine.packing import empty_call, pack, unpack
from moejax.inference.engine.state import (
    State,
    make_empty_state,
    put_seats,
    state_shardings,
    take_seats,
)
from moejax.inference.engine.telling import ROUTES, SCORES, add_up_asked, order_routes, score
from moejax.inference.inference_config import (
    check_can_generate,
    inference_config,
    inference_layout,
)
from moejax.inference.sampling import draw, make_keys
from moejax.models.decoder import DecoderLM
from moejax.models.kv_cache import CacheType
from moejax.models.layer_runs import leave_out_next_tokens
from moejax.moe.lying import hold, lie
from moejax.runtime import partition

Weights = tuple[dict, jax.Array | None, jax.Array | None]
"""Parameters, the selection bias, and the places of replicas: see ``DecoderLM``."""


class PageRunner:
    """One model on one mesh, with a pool of pages of these ``sizes`` (a ``calls.Runner``); without
    sizes, it is called after ``resize`` alone.

    ``window``, ``place_LER`` and ``cache`` as for ``Generator``; so many of the model's ``modules``
    make drafts. Calls of other shapes than those
    of ``sizes`` are answered, too, but compiled when they come. On several processes, all call it
    alike. Raises ``ConfigError`` for a router that cannot generate.
    """

    sizes: Sizes

    def __init__(
        self,
        config: ModelConfig,
        layout: MeshConfig,
        params: dict,
        bias_LE: jax.Array | None,
        *,
        mesh: Mesh,
        sizes: Sizes | None = None,
        window: int | None = None,
        place_LER: jax.Array | None = None,
        cache: CacheType | None = None,
        modules: int = 0,
    ) -> None:
        check_can_generate(config)
        if modules:
            config = replace(config, next_tokens=modules)
        else:
            config, params, bias_LE = leave_out_next_tokens(config, params, bias_LE)
        self._mesh = mesh
        self._far = mesh.devices.flat[0].platform != "cpu"  # else the host can read what is there
        self._vocab_size = params["embedding_VD"].shape[0]
        self.set_weights(params, bias_LE, place_LER)
        self._empty_state = make_empty_state(config, mesh, cache)
        self._run = make_program(config, self._vocab_size, layout, mesh, window, cache)
        self._state: State = {}
        if sizes is not None:
            self.resize(sizes)

    def resize(self, sizes: Sizes) -> None:
        """Begin anew with so many seats and pages. Only shapes that are new are compiled."""
        self.sizes = sizes
        self.let_go()
        with jax.set_mesh(self._mesh):
            self._state = self._empty_state(sizes)

    def let_go(self) -> None:
        """Have no seats and pages, until ``resize``."""
        self._state = {}
        self._asked_LE: np.ndarray | None = None
        self._total_LE: np.ndarray | None = None

    def set_weights(
        self, params: dict, bias_LE: jax.Array | None, place_LER: jax.Array | None = None
    ) -> None:
        """Go on with other parameters of the same shapes, from the next call."""
        with jax.set_mesh(self._mesh):
            self._weights: Weights = (hold(params), bias_LE, place_LER)

    @property
    def weights(self) -> Weights:
        """What the next call takes."""
        return self._weights

    def extend(self, call: Call) -> Drawn:
        """As ``calls.Runner.extend``."""
        with jax.set_mesh(self._mesh):
            given, how = self._given(call)
            self._state, found = self._run(*given, **how)
        wanted = ("token_B1", "draft_BP", *SCORES * call.scores, *ROUTES * call.routes)
        told = {name: found[name] for name in wanted if name in found}
        for array in told.values() if self._far else ():
            array.copy_to_host_async()
        return Drawn(**told)

    def warm(self) -> None:
        """Compile all calls of these sizes, several at a time. GPUs and TPUs make each, too, which
        shows that there is memory for it; on a CPU one without a text takes as long as any, up to
        seconds with a long window.
        """
        calls = [
            replace(empty_call(rows * self.sizes.lanes, tokens, pages), every=every)
            for rows, tokens, pages, every in self.sizes.shapes()
        ]
        with jax.set_mesh(self._mesh), ThreadPoolExecutor(os.cpu_count()) as threads:
            compiled = []
            for call in calls:  # traced here, as Python does one thing at a time
                given, how = self._given(call)
                compiled.append(threads.submit(self._run.lower(*given, **how).compile))
            for one in compiled:
                one.result()
        for call in calls if self._far else ():  # what was compiled is found
            self.extend(call)
        jax.block_until_ready(self._state)

    def _given(self, call: Call) -> tuple[tuple, dict[str, Any]]:
        """The arguments of a call."""
        N = 0 if call.token_BN is None else call.token_BN.shape[1]
        return (self._weights, self._state, pack(call)), {"N": N, "every": call.every}

    def load_LE(self) -> np.ndarray | None:
        """As ``calls.Runner.load_LE``."""
        if "asked_XLE" not in self._state:
            return None
        asked_LE = np.asarray(self._state["asked_XLE"]).sum(0, dtype=np.uint32)
        if self._total_LE is None or self._asked_LE is None:
            self._total_LE, self._asked_LE = np.zeros(asked_LE.shape, np.int64), 0 * asked_LE
        self._total_LE = self._total_LE + (asked_LE - self._asked_LE)  # whatever has overflown
        self._asked_LE = asked_LE
        return self._total_LE


def make_program(
    config: ModelConfig,
    vocab_size: int,
    layout: MeshConfig,
    mesh: Mesh,
    window: int | None = None,
    kind: CacheType | None = None,
) -> Any:
    """``(weights, state, packed_BF, N=, every=) -> (state, found)``, jitted: what ``PageRunner``
    calls, of a model without modules that predict further tokens, or with those that make drafts.
    The state is written in place.
    """
    model = DecoderLM(inference_config(config), vocab_size, inference_layout(layout))
    everywhere = partition.activation_sharding(mesh, "everywhere")
    return jax.jit(
        partial(_extend, model, window),
        static_argnames=("N", "every"),
        donate_argnums=1,
        out_shardings=(state_shardings(config, mesh, kind), everywhere),
    )


def _extend(
    model: DecoderLM,
    window: int | None,
    weights: Weights,
    state: State,
    packed_BF: jax.Array,
    *,
    N: int,
    every: bool,
) -> tuple[State, dict[str, jax.Array]]:
    """The state after a call, and what it gives, by the names of ``Drawn``. Without tokens (N = 0)
    each row goes on with the last one that was drawn for its seat.
    """
    packed_BF = partition.pin(packed_BF, "batch_BN")
    rows, since_B, token_BN, scores, draws = unpack(packed_BF, N)
    if N == 0:
        token_BN = take_seats(state["token_XS"], rows)[:, None]
    params, bias_LE, place_LER = lie(weights[0]), *weights[1:]
    given = (token_BN, rows, state["pool"], bias_LE, place_LER, window, every)
    ahead = N > 0 and model.config.next_tokens > 0
    method = "extend_for_modules" if ahead else "extend"
    told: Any = model.apply({"params": params}, *given, method=method)
    logits_B1V, pool, routed, *reading = told
    B, n = logits_B1V.shape[:2]
    first_B = rows.at_B + (1 if every else rows.count_B)
    position_B1 = first_B[:, None] + jnp.arange(n)
    of_all = {name: jnp.repeat(x_B, n) for name, x_B in draws.items()}
    keys = make_keys(of_all, position_B1.reshape(-1))
    token_B1 = draw(logits_B1V.reshape(B * n, -1), keys, of_all).reshape(B, n)
    token_B1 = partition.pin(token_B1, "batch_BN")  # each device draws for its own rows
    last_B1 = count_right(token_BN, token_B1, rows.count_B) if every else 0 * rows.count_B[:, None]
    last_B = jnp.take_along_axis(token_B1, last_B1, 1)[:, 0]
    token_XS = put_seats(state["token_XS"], rows, last_B)
    state = state | {"pool": pool, "token_XS": token_XS}
    found = {"token_B1": token_B1} | score(logits_B1V, token_B1, scores)
    if routed is not None:
        state["asked_XLE"] += add_up_asked(routed, len(token_XS))
        found |= order_routes(routed)
    if ahead:
        end_B = last_B1[:, 0] if every else jnp.maximum(rows.count_B - 1, 0)
        where = Window(rows, since_B, token_BN, last_B, end_B, draws, window)
        own = {"bias_E": bias_LE, "place_ER": place_LER}
        shape = (model.config, model.layout)
        state, found["draft_BP"] = draft_ahead(*shape, params, own, state, where, *reading)
    return state, found


def count_right(token_BN: jax.Array, drawn_BN: jax.Array, count_B: jax.Array) -> jax.Array:
    """How many drafts, the tokens of each row behind its first, are what was drawn before them, up
    to the first that is not: ``[B, 1]``.
    """
    draft_BN = jnp.arange(1, token_BN.shape[1]) < count_B[:, None]
    right_BN = draft_BN & (token_BN[:, 1:] == drawn_BN[:, :-1])
    return jnp.cumprod(right_BN, axis=1, dtype=jnp.int32).sum(1, keepdims=True)
