"""Triangular systems solved by products, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.models.unit_triangular import invert_unit_lower, solve_unit_lower


def test_an_inverse_by_hand():
    """Each row takes half of the one above it away: the inverse takes halves of halves."""
    below = jnp.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]])
    inverse = [[1, 0, 0], [-0.5, 1, 0], [0.25, -0.5, 1]]
    np.testing.assert_array_equal(invert_unit_lower(below), inverse)


@pytest.mark.parametrize("size", [1, 5, 64])
def test_a_system_has_the_solution_of_float64(size):
    rng = np.random.default_rng(size)
    below = np.tril(0.3 * rng.normal(size=(2, size, size)), -1)
    b = rng.normal(size=(2, size, 3))
    want = np.linalg.solve(below + np.eye(size), b)
    got = solve_unit_lower(jnp.asarray(below, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max())


def test_no_library_is_called():
    """LAPACK's solver waits for ever in a program for several CPUs."""
    systems = jax.ShapeDtypeStruct((2, 8, 8), jnp.float32)
    assert "custom_call" not in jax.jit(invert_unit_lower).lower(systems).as_text()
