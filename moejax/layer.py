"""The Linen modules that declare the parameters of routed and dense feed-forward layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax import balance, experts
from moejax.config import MoEConfig
from moejax.dispatch import einsum
from moejax.routing import token_choice
from moejax.routing.seating import capacity


def matrix(module: nn.Module, name: str, shape: tuple[int, ...]) -> jax.Array:
    """A float32 matrix parameter (or bank of them), normal with variance 1 / fan-in."""
    return module.param(name, nn.initializers.normal(shape[-2] ** -0.5), shape, jnp.float32)


class FeedForward(nn.Module):
    """A dense feed-forward layer: ``x_BND -> y_BND``, computed in the type of ``x_BND``."""

    hidden_size: int
    activation: str

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        D, F = x_BND.shape[-1], self.hidden_size
        shapes = {"w_gate": (D, F), "w_up": (D, F), "w_down": (F, D)}
        names = experts.matrices(self.activation)
        letters = {name: "FD" if name == "w_down" else "DF" for name in names}
        params = {
            f"{name}_{letters[name]}": matrix(self, f"{name}_{letters[name]}", shapes[name])
            for name in names
        }
        params = jax.tree.map(lambda w: w.astype(x_BND.dtype), params)
        return experts.feed_forward(params, x_BND, self.activation)


class MoELayer(nn.Module):
    """A routed feed-forward layer, with its shared experts.

    ``(x_BND, real_BN) -> (y_BND, stats)``: ``real_BN`` is False at padding, which takes no slot and
    is in no count. A token all of whose choices are dropped gets the shared experts' output, or 0:
    the residual stream carries it on. ``stats`` is a ``balance.RouterStats``.
    """

    config: MoEConfig
    activation: str

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, real_BN: jax.Array, training: bool
    ) -> tuple[jax.Array, balance.RouterStats]:
        moe, D = self.config, x_BND.shape[-1]
        E, F, S, K = moe.num_experts, moe.hidden_size, moe.group_size, moe.top_k
        x_GSD, real_GS = x_BND.reshape(-1, S, D), real_BN.reshape(-1, S)

        # Routers compute in float32 whatever the type of the activations.
        logits_GSE = jnp.matmul(
            x_GSD.astype(jnp.float32),
            matrix(self, "w_router_DE", (D, E)),
            precision=jax.lax.Precision.HIGHEST,  # else bfloat16 passes on TPU, TF32 on GPU
        )
        choice = token_choice.choose(logits_GSE, token_choice.preset(moe.router, K))
        factor = moe.capacity_factor if training else moe.eval_capacity_factor
        y_GSD, seated_GSK = einsum.route(
            self._bank(D, E, F, x_BND.dtype),
            x_GSD,
            choice,
            real_GS,
            activation=self.activation,
            capacity=capacity(S, K, E, factor),
        )
        stats = balance.router_stats(
            logits_GSE, choice.probability_GSE, choice.expert_GSK, seated_GSK, real_GS
        )
        y_BND = y_GSD.reshape(x_BND.shape)
        if moe.shared_experts:
            y_BND += FeedForward(moe.shared_experts * F, self.activation, name="shared")(x_BND)
        return y_BND, stats

    def _bank(self, D: int, E: int, F: int, dtype: jnp.dtype) -> dict[str, jax.Array]:
        shapes = {"w_gate": ("EDF", (E, D, F)), "w_up": ("EDF", (E, D, F))}
        shapes["w_down"] = ("EFD", (E, F, D))
        names = {f"{n}_{shapes[n][0]}": shapes[n][1] for n in experts.matrices(self.activation)}
        return {name: matrix(self, name, shape).astype(dtype) for name, shape in names.items()}
