"""Muon's iterations on matrices of all shapes: against float64, against optax, and as planned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import _muon

from moejax.config import OptimConfig
from moejax.lab.plan.step_flops import muon_flops
from moejax.runtime.program_flops import count_flops
from moejax.train.optimizer import C0, C1, C2, iterates_square, orthogonalise

SHAPES = {
    "square": (2, 3, 24, 24),
    "rather wide": (3, 16, 24),
    "wide": (4, 16, 48),
    "tall": (4, 48, 16),
    "one row": (1, 12),
}


def iterate(x: np.ndarray, iterations: int) -> np.ndarray:
    """What Muon does with a matrix, as its paper writes it, in float64."""
    if x.shape[-2] > x.shape[-1]:
        m, n = x.shape[-2:]
        return iterate(x.swapaxes(-1, -2), iterations).swapaxes(-1, -2) / (m / n) ** 0.5
    scale = np.abs(x @ x.swapaxes(-1, -2)).sum(-1, keepdims=True) ** -0.5
    x = x * scale
    for _ in range(iterations):
        square = x @ x.swapaxes(-1, -2)
        x = C0 * x + (C1 * square + C2 * square @ square) @ x
    return x * (x.shape[-1] / x.shape[-2]) ** 0.5


@pytest.mark.parametrize("iterations", [1, 3, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_iteration_of_the_paper(shape, iterations):
    """Also where some directions are a millionth of others."""
    shape = SHAPES[shape]
    x = np.random.default_rng(0).normal(size=shape)
    u, values, v = np.linalg.svd(x, full_matrices=False)
    unlike = u * np.logspace(0, -6, values.shape[-1]) @ v
    for matrices in np.float32((x, unlike)):
        with jax.disable_jit():
            found = orthogonalise(jnp.asarray(matrices), iterations)
        np.testing.assert_allclose(found, iterate(np.float64(matrices), iterations), atol=1e-5)


def test_it_is_that_of_optax():
    for shape in ((24, 24), (16, 48)):
        x = jax.random.normal(jax.random.key(0), shape)
        coefficients = jnp.float32([C0, C1, C2])
        other = _muon.orthogonalize_via_newton_schulz(x, coefficients, 3, "aol")
        other *= (shape[1] / shape[0]) ** 0.5
        np.testing.assert_allclose(orthogonalise(x, 3), other, atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("shape", ["square", "wide", "tall"])
def test_the_plan_counts_its_products(shape, iterations):
    x = jax.ShapeDtypeStruct(SHAPES[shape], jnp.float32)
    text = jax.jit(lambda x: orthogonalise(x, iterations)).lower(x).compile().as_text()
    config = OptimConfig(optimizer="muon", muon_iterations=iterations)
    assert count_flops(text) == muon_flops({"w_up_DF": x}, config)


def test_the_shorter_way_is_taken():
    """Iterating the square of the shorter side, or the matrix: whichever takes fewer products, and
    is exact.
    """
    for m, n in ((8, 8), (8, 12), (8, 13), (8, 64), (64, 8)):
        short, long = sorted((m, n))
        of_square = 4 * short**2 * long + 18 * short**3
        fewer = of_square < 3 * (4 * short**2 * long + 2 * short**3)
        assert iterates_square(m, n, 3) == fewer
        assert not iterates_square(m, n, 4)
