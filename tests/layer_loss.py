"""One routed layer held against the oracle: outputs, counts, a loss, and its slope along a random
direction in every array. The loss is <direction, y>, the balance loss, and a tenth of the z-loss.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
import oracle

from moejax.moe import balance


def sum_layer(stats: balance.RouterStats) -> balance.RouterStats:
    """The sums of one layer over its sequences, with a leading L of 1."""
    return balance.sum_sequences(jax.tree.map(lambda s: s[None], stats))


def layer_loss(y_BND: jax.Array, stats: balance.RouterStats, direction_BND) -> jax.Array:
    """The loss, of what a layer gives."""
    sums = sum_layer(stats)
    auxiliary = balance.balance_loss(sums).sum() + 0.1 * balance.z_loss(sums).sum()
    return (y_BND * direction_BND).sum() + auxiliary


@dataclass(frozen=True, eq=False)
class Truth:
    """The oracle on some inputs, parameters and ``x``: its groups, and its loss of other inputs
    under the same choices.
    """

    inputs: dict
    groups: list[oracle.Group]
    loss: Callable[[dict], float]

    @functools.cached_property
    def slopes(self) -> dict[str, tuple[np.ndarray, float]]:
        """For each array a random direction, and the slope of the loss along it."""
        rng, found = np.random.default_rng(2), {}
        for name, array in oracle.flat(self.inputs).items():
            along = rng.normal(size=array.shape)
            along /= np.sqrt(np.square(along).sum())
            found[name] = along, oracle.slope(self.loss, self.inputs, name, along)
        return found

    def count(self, name: str) -> np.ndarray:
        """An array of the groups, summed over the tokens of each sequence: [B, E]."""
        by_token = np.concatenate([getattr(group, name) for group in self.groups])
        B, N, _ = self.inputs["x"].shape
        return by_token.reshape(B, N, -1).sum(1)

    def assert_equal(self, value, y_BND, stats: balance.RouterStats, gradients: tuple) -> None:
        """The loss, outputs, who asked and who got a slot, and every gradient: of the parameters,
        and of the tokens.
        """
        want = np.concatenate([group.y_SD for group in self.groups]).reshape(y_BND.shape)
        np.testing.assert_allclose(y_BND, want, atol=1e-5)
        np.testing.assert_allclose(value, self.loss(self.inputs), atol=1e-5)
        np.testing.assert_array_equal(stats.asked_BE, self.count("asked_SE"))
        np.testing.assert_array_equal(stats.seated_BE, self.count("seated_SE"))
        params, x = gradients
        for name, gradient in oracle.flat(params | {"x": x}).items():
            along, slope = self.slopes[name]
            np.testing.assert_allclose((gradient * along).sum(), slope, atol=1e-5, err_msg=name)


def run_oracle(
    layer: oracle.Layer, params: dict, x_BND, real_BN, direction_BND, group_size: int, bias_E=None
) -> Truth:
    """The oracle on a layer's inputs, in groups of so many tokens."""
    exact = jax.tree.map(lambda p: np.asarray(p, np.float64), dict(params) | {"x": x_BND})
    bias_E = None if bias_E is None else np.float64(bias_E)

    def run(inputs: dict, plan=None) -> list[oracle.Group]:
        rest = {name: array for name, array in inputs.items() if name != "x"}
        x_GSD = inputs["x"].reshape(-1, group_size, x_BND.shape[-1])
        real_GS = real_BN.reshape(-1, group_size)
        return oracle.run(layer, rest, x_GSD, real_GS, bias_E=bias_E, plan=plan)

    groups = run(exact)
    plan = [group.plan for group in groups]

    def loss(inputs: dict) -> float:
        moved = run(inputs, plan)
        tokens, y = oracle.tokens_of(moved), np.concatenate([group.y_SD for group in moved])
        auxiliary = oracle.switch_balance(tokens) + 0.1 * oracle.z_loss(tokens)
        return (y * direction_BND.reshape(y.shape)).sum() + auxiliary

    return Truth(exact, groups, loss)
