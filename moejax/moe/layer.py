"""The Linen modules that declare the parameters of routed and dense feed-forward layers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moejax.config.mesh import MeshConfig
from moejax.config.moe import MoEConfig
from moejax.moe import balance, experts
from moejax.moe.choose_travel import choose_travel
from moejax.moe.dispatch import einsum, gather, grouped
from moejax.moe.dropout import Dropout
from moejax.moe.layer_stats import layer_stats
from moejax.moe.lying import Lying, as_type
from moejax.moe.parallel import by_rows
from moejax.moe.parallel.on_each_device import run_on_each_device
from moejax.moe.parallel.replicas import choose_places
from moejax.moe.parameters import matrix, weight, zeros
from moejax.moe.quantised import is_quantised
from moejax.moe.scores import add_noise, multiply_exactly, normalise, zero_bad_tokens
from moejax.moe.trained_bank import train_bank
from moejax.moe.travel import Travel
from moejax.routing import contract
from moejax.routing.contract import Choice, RouterInput, Rows, TokenChoice
from moejax.routing.seating import capacity


class FeedForward(nn.Module):
    """A dense feed-forward layer: ``x_BND -> y_BND``, computed in the type of ``x_BND``."""

    hidden_size: int
    activation: str
    layout: MeshConfig = MeshConfig()

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        D, F = x_BND.shape[-1], self.hidden_size
        shapes = {
            f"{name}_{'FD' if name == 'w_down' else 'DF'}": (F, D) if name == "w_down" else (D, F)
            for name in experts.matrices(self.activation)
        }
        params = {n: weight(self, n, shape, x_BND.dtype) for n, shape in shapes.items()}
        x_TD = x_BND.reshape(-1, D)
        return experts.network(params, x_TD, self.activation).reshape(x_BND.shape)


class MoELayer(nn.Module):
    """A routed feed-forward layer, with its shared experts.

    ``(x_BND, real_BN) -> (y_BND, stats, chosen_BNE)``: ``real_BN`` is False at padding, which takes
    no slot and is in no count. A token all of whose choices are dropped gets the shared experts'
    output, or 0: the residual stream carries it on. A token that is not finite, or has such a
    logit, gets 0 and is counted. ``stats`` is a ``balance.RouterStats``, ``chosen_BNE`` says which
    experts each token asked for. ``bias_E`` is the selection bias (float32), ``token_BN`` the ids
    that some routers look at, ``by_id`` whether this layer's goes by them, where only some layers'
    do. In training, routers that draw do so from the stream ``router``.
    ``layout`` says how tokens meet experts on other devices of the mesh in use.

    ``routes_BNK`` are recorded choices, taken in the place of the router's own; ``run`` gives what
    was chosen. Both are int32, -1 for no expert, in the order of choice, which is
    the order in which slots are given out.
    In training, ``stacked`` is where the numbers of the bank's parameters lie, if it is given.
    At inference, experts may have replicas: ``place_ER`` (int32, see ``replicas.list_places``) says
    in which places of the bank's parameters, then [P, ...], each expert stands.
    """

    config: MoEConfig
    activation: str
    layout: MeshConfig = MeshConfig()

    def __call__(
        self, x_BND: jax.Array, real_BN: jax.Array, *, training: bool, **own: Any
    ) -> tuple[jax.Array, balance.RouterStats, jax.Array]:
        """``(y_BND, stats, chosen_BNE)``; ``own`` are the further arguments of ``run``."""
        y_BND, stats, chosen_BNE, _ = self.run(x_BND, real_BN, training=training, **own)
        return y_BND, stats, chosen_BNE

    @nn.compact
    def run(
        self,
        x_BND: jax.Array,
        real_BN: jax.Array,
        *,
        training: bool,
        bias_E: jax.Array | None = None,
        token_BN: jax.Array | None = None,
        by_id: jax.Array | None = None,
        routes_BNK: jax.Array | None = None,
        place_ER: jax.Array | None = None,
        stacked: dict[str, Lying] | None = None,
    ) -> tuple[jax.Array, balance.RouterStats, jax.Array, tuple[jax.Array, jax.Array] | None]:
        """What a call gives, and ``(expert_BNK, weight_BNK)``: what was chosen, and the weights;
        None where tokens do not choose.
        """
        moe, router = self.config, self.config.built_router
        if place_ER is not None and (training or router.experts_choose or router.slots):
            raise ValueError("replicas of experts are for inference, where tokens choose experts.")
        B, N, D = x_BND.shape
        S, E = moe.group_size, moe.num_experts
        rows = Rows(pieces=self.layout.context, sequences=B // self.layout.context)
        # 0 times what is not finite would spread it to every token of the group, and to gradients.
        finite_BN = jnp.isfinite(x_BND).all(-1)
        x_BND = jnp.where((real_BN & finite_BN)[..., None], x_BND, 0)
        x_GSD = x_BND.reshape(-1, S, D)
        slots = self._count_slots(training)
        keys: jax.Array | list[None] = [None] * 3
        if training and self.has_rng("router"):
            keys = jax.random.split(self.make_rng("router"), 3)
        scores = self._score(x_GSD, slots, keys[0], rows)
        scores, bad_GS = zero_bad_tokens(checkpoint_name(scores, "router_logits"))
        real_GS, bad_GS = real_BN.reshape(-1, S), bad_GS | ~finite_BN.reshape(-1, S)
        inputs = RouterInput(
            **scores,
            real_GS=real_GS & ~bad_GS,
            top_k=moe.top_k,
            capacity=slots,
            training=training,
            key=keys[1],
            bias_E=bias_E,
            token_GS=None if token_BN is None else token_BN.reshape(-1, S),
            by_id=by_id,
            rows=rows,
            replayed_GSK=self._replay(routes_BNK),
        )
        choice = router.choose(inputs)
        dropout, key = None, keys[2]
        if key is not None and moe.expert_dropout:
            dropout = Dropout(moe.expert_dropout, key)
        y_GSD, seated_GSE = self._experts(choice, x_GSD, inputs, place_ER, stacked, dropout)
        if moe.num_choices > E:
            more_GSD, more_GSE = self._zero_computation(choice, x_GSD, inputs.real_GS)
            y_GSD += more_GSD
            seated_GSE = jnp.concatenate([seated_GSE, more_GSE], axis=-1)
        own = self.variables.get("params", {})
        stats = layer_stats(moe, inputs, choice, seated_GSE, bad_GS & real_GS, B, own)
        y_BND = y_GSD.reshape(x_BND.shape)
        if moe.shared_experts:
            y_BND += self._shared(x_BND)
        chosen_GSE = contract.asked(choice, inputs.real_GS) > 0
        ordered = contract.in_order(choice, inputs.real_GS)
        ordered = jax.tree.map(lambda x_GSK: x_GSK.reshape(B, N, -1), ordered)
        return y_BND, stats, chosen_GSE.reshape(B, N, -1), ordered

    def _count_slots(self, training: bool) -> int:
        """Slots of an expert in a group."""
        moe = self.config
        fixed = not training and not moe.built_router.experts_choose
        factor = moe.eval_capacity_factor if fixed else moe.capacity_factor
        return capacity(moe.group_size, moe.top_k, moe.num_choices, factor)

    def _replay(self, routes_BNK: jax.Array | None) -> jax.Array | None:
        """Recorded choices as the router takes them: a number of no expert is no expert."""
        moe = self.config
        if routes_BNK is None:
            return None
        if not moe.built_router.replays:
            raise ValueError(f"the router {moe.router} cannot replay choices.")
        known_BNK = (routes_BNK >= 0) & (routes_BNK < moe.num_choices)
        replayed_BNK = jnp.where(known_BNK, routes_BNK.astype(jnp.int32), -1)
        return replayed_BNK.reshape(-1, moe.group_size, moe.top_k)

    def _score(
        self, x_GSD: jax.Array, slots: int, key: jax.Array | None, rows: Rows
    ) -> dict[str, jax.Array]:
        """The router's logits, in float32 whatever the type of the activations."""
        moe, router = self.config, self.config.built_router
        D, E = x_GSD.shape[-1], moe.num_choices
        x_GSD = add_noise(x_GSD.astype(jnp.float32), moe, key, rows)
        if not router.learned:
            return {"logits_GSE": jnp.zeros((*x_GSD.shape[:2], E), jnp.float32)}
        if router.slots:
            # Puigcerver et al. 2023, section 2.3: both normalised, with a learned scale.
            normal, shape = nn.initializers.normal(D**-0.5), (D, E, slots)
            w_DR = self.param("w_router_DEC", normal, shape, jnp.float32).reshape(D, -1)
            scale = self.param("router_scale", nn.initializers.ones, (), jnp.float32)
            logits_GSR = multiply_exactly(
                normalise(x_GSD, axis=-1), scale * normalise(w_DR, axis=0)
            )
            logits_GSEC = logits_GSR.reshape(*x_GSD.shape[:2], E, slots)
            logits_GSE = jax.nn.logsumexp(logits_GSEC, axis=-1)
            return {"logits_GSE": logits_GSE, "logits_GSEC": logits_GSEC}
        logits_GSE = multiply_exactly(x_GSD, weight(self, "w_router_DE", (D, E), jnp.float32))
        if router.linear_bias:
            logits_GSE += jnp.asarray(zeros(self, "b_router_E", (E,)))
        scores = {"logits_GSE": logits_GSE}
        if router.learns_noise:
            scores["noise_GSE"] = multiply_exactly(x_GSD, zeros(self, "w_noise_DE", (D, E)))
        return scores

    def _zero_computation(
        self,
        choice: Choice,
        x_GSD: jax.Array,
        real_GS: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """What the experts without parameters give, and which tokens got them.

        Jin et al. 2024 (MoE++), Eq. 3-4: null experts give 0, identity experts the token itself.
        They have room for all.
        """
        E, identities = self.config.num_experts, self.config.identity_experts
        weight_GSE = contract.weight(choice, real_GS)[..., E : E + identities]
        weight_GS1 = weight_GSE.sum(-1, keepdims=True)
        y_GSD = weight_GS1.astype(x_GSD.dtype) * x_GSD
        return y_GSD, contract.asked(choice, real_GS)[..., E:]

    def _shared(self, x_BND: jax.Array) -> jax.Array:
        """The shared experts as one dense layer; gated by sigmoid(x w) as in Qwen2-MoE."""
        moe = self.config
        shared = FeedForward(moe.shared_width, self.activation, self.layout, name="shared")
        y_BND = shared(x_BND)
        if not moe.shared_gate:
            return y_BND
        w_D1 = matrix(self, "w_shared_gate_D1", (x_BND.shape[-1], 1))
        gate_BN1 = jax.nn.sigmoid(multiply_exactly(x_BND.astype(jnp.float32), w_D1))
        return y_BND * gate_BN1.astype(y_BND.dtype)

    def _experts(
        self,
        choice: Choice,
        x_GSD: jax.Array,
        inputs: RouterInput,
        place_ER: jax.Array | None,
        stacked: dict[str, Lying] | None,
        dropout: Dropout | None,
    ) -> tuple[jax.Array, jax.Array]:
        """``y_GSD`` and ``seated_GSE`` of the chosen experts, wherever they are."""
        moe, real_GS, slots = self.config, inputs.real_GS, inputs.capacity
        sizes = (moe.num_experts, x_GSD.shape[-1], moe.hidden_size)
        shapes = experts.bank_shapes(self.activation, *sizes, moe.expert_bias)
        travels = partial(
            choose_travel, moe, self.layout, activation=self.activation, dropout=dropout
        )
        if place_ER is None:
            made = {
                n: (zeros if n.startswith("b_") else matrix)(self, n, s) for n, s in shapes.items()
            }
            bank = {n: as_type(w, x_GSD.dtype) for n, w in made.items()}
            if stacked:
                bank = train_bank(made, stacked)
            travel = travels(bank, x_GSD, capacity=slots)
            bank = fit_route(bank, travel, x_GSD.dtype)
            return ROUTES[travel.route](bank, x_GSD, choice, real_GS, travel=travel)
        assert isinstance(choice, TokenChoice)
        # As many places as there are; Linen would want one for each expert.
        bank = {n: as_type(self.get_variable("params", n), x_GSD.dtype) for n in shapes}
        choice, seated_GSE = choose_places(choice, place_ER, real_GS, slots, moe.seating)
        travel = travels(bank, x_GSD, capacity=x_GSD.shape[1])
        bank = fit_route(bank, travel, x_GSD.dtype)
        y_GSD, _ = ROUTES[travel.route](bank, x_GSD, choice, real_GS, travel=travel)
        return y_GSD, seated_GSE


# Each takes the kinds of choice that the config allows with it.
ROUTES: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    "einsum": einsum.route,
    "gather": gather.route,
    "grouped": partial(run_on_each_device, grouped.route),
    "all_gather": partial(run_on_each_device, by_rows.route),
    "ragged": partial(run_on_each_device, by_rows.route),
}
"""By ``Travel.route``: ``(bank, x_GSD, choice, real_GS, travel=) -> (y_GSD, seated_GSE)``, tokens
sent to the experts that they chose, and what comes back added up."""


def fit_route(bank: dict[str, Any], travel: Travel, dtype: jnp.dtype) -> dict[str, Any]:
    """The bank as its route wants it: only rows know to read it where it lies."""
    if travel.dispatch == "grouped" and not travel.layout.fsdp:
        return bank

    def fit(w: Any) -> Any:
        return w if is_quantised(w) else w.astype(dtype)

    return jax.tree.map(fit, bank, is_leaf=is_quantised)
