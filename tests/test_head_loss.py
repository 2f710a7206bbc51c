"""The loss of an output head, chunk by chunk, against all logits at once in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import MeshConfig
from moejax.models import head_loss
from moejax.models.chunk_loss import Aim
from moejax.models.head import Head
from moejax.models.head_loss import Tokens, sum_losses
from moejax.runtime import device_mesh

D, V, B, N = 6, 22, 8, 5


def softmax(logits):
    """Of the last dimension, and the log of the sum of the exponentials."""
    most = logits.max(-1, keepdims=True)
    log_z = most + np.log(np.exp(logits - most).sum(-1, keepdims=True))
    return np.exp(logits - log_z), log_z[..., 0]


def oracle(w_DV, x_QBND, target_QBN, real_QBN, weight_Q, scale, smoothing, z_weight):
    """The loss, each module's nats and squares and best tokens; and the gradients of states and of
    the matrix: by the formulas, in float64.
    """
    loss, nats_Q, squares_Q, best_Q, dx_Q, dw_DV = 0.0, [], [], [], [], np.zeros(w_DV.shape)
    for x, target, real, weight in zip(x_QBND, target_QBN, real_QBN, weight_Q, strict=True):
        logits = np.where(real[..., None], x, 0) @ w_DV * scale
        p, log_z = softmax(logits)
        aimed = (1 - smoothing) * np.eye(V)[target] + smoothing / V
        nats = (real * (log_z - (aimed * logits).sum(-1))).sum()
        squares = (real * log_z**2).sum()
        d = p * (1 + 2 * z_weight * log_z[..., None]) - aimed
        d *= weight * scale * real[..., None]
        loss += weight * (nats + z_weight * squares)
        nats_Q.append(nats)
        squares_Q.append(squares)
        best_Q.append(logits.argmax(-1))
        dx_Q.append(d @ w_DV.T)
        dw_DV += np.einsum("bnd,bnv->dv", np.where(real[..., None], x, 0), d)
    return loss, nats_Q, squares_Q, best_Q, dx_Q, dw_DV


def draw(modules: int = 1, seed: int = 0):
    """A matrix, states, targets and which of them count; where none does states are not finite."""
    rng = np.random.default_rng(seed)
    real = [rng.random((B, N)) < 0.8 for _ in range(modules)]
    x = [rng.normal(size=(B, N, D)) for _ in range(modules)]
    target = [rng.integers(0, V, (B, N)) for _ in range(modules)]
    weight_Q = rng.uniform(0.1, 0.9, modules)
    return rng.normal(size=(D, V)), x, target, real, weight_Q


def close(got, want, tolerance):
    """To this share of the largest number."""
    atol = tolerance * np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=atol)


CASES = {
    "plain": {},
    "smoothed": {"smoothing": 0.1},
    "with squares": {"z_weight": 0.01},
    "multiplied": {"scale": 0.25},
    "two further modules": {"modules": 3, "smoothing": 0.2, "z_weight": 0.1, "scale": 2.0},
    "tied": {"tied": True, "z_weight": 0.1},
    "bfloat16": {"dtype": "bfloat16", "smoothing": 0.1, "z_weight": 0.01},
    "on a mesh": {"mesh": (2, 2, 2), "modules": 2, "smoothing": 0.1, "z_weight": 0.1},
    "tied, on a mesh, spread": {"mesh": (2, 2, 2), "tied": True, "fsdp": True},
    "on a mesh that leaves the vocabulary whole": {"mesh": (2, 1, 4), "z_weight": 0.1},
}


@pytest.mark.parametrize("chunk", [7, 64], ids=["chunks", "whole"])
@pytest.mark.parametrize("name", CASES)
def test_sums_and_gradients_are_those_of_all_logits(monkeypatch, name, chunk):
    case = {"modules": 1, "scale": 1.0, "smoothing": 0.0, "z_weight": 0.0} | CASES[name]
    case = {"tied": False, "fsdp": False, "dtype": "float32", "mesh": None} | case
    monkeypatch.setattr(head_loss, "FEWEST", chunk)
    monkeypatch.setattr(head_loss, "CHUNK", 1)
    aim = Aim(smoothing=case["smoothing"], z_loss_weight=case["z_weight"])
    w_DV, x, target, real, weight_Q = draw(case["modules"])
    w_DV, *x = (np.asarray(jnp.asarray(a, case["dtype"]), np.float64) for a in (w_DV, *x))
    want = oracle(w_DV, x, target, real, weight_Q, case["scale"], aim.smoothing, aim.z_loss_weight)

    def run(w, x):
        head = Head(w, case["tied"], case["scale"], case["fsdp"])
        spoilt = (jnp.where(r[..., None], a, jnp.inf) for a, r in zip(x, real, strict=True))
        tokens = Tokens(
            tuple(spoilt), tuple(map(jnp.asarray, target)), tuple(map(jnp.asarray, real))
        )
        found = sum_losses(head, tokens, jnp.asarray(weight_Q, jnp.float32), aim, best=True)
        return 3 * found.loss, found

    given = (
        jnp.asarray(w_DV.T if case["tied"] else w_DV, case["dtype"]),
        [jnp.asarray(a, case["dtype"]) for a in x],
    )
    step = jax.jit(jax.grad(run, (0, 1), has_aux=True))
    if case["mesh"]:
        layout = MeshConfig(**dict(zip(("data", "expert", "model"), case["mesh"], strict=True)))
        with jax.set_mesh(device_mesh.make_mesh(layout, jax.devices()[: np.prod(case["mesh"])])):
            (dw, dx), found = step(*given)
    else:
        (dw, dx), found = step(*given)
    loss, nats_Q, squares_Q, best_Q, dx_Q, dw_DV = want
    for got, wanted in (
        (found.loss, loss),
        (found.nats_Q, nats_Q),
        (found.log_z_squared_Q, squares_Q),
    ):
        close(got, np.asarray(wanted), 1e-5)
    for r, got, wanted in zip(real, found.best_QBN, best_Q, strict=True):
        np.testing.assert_array_equal(np.asarray(got)[r], wanted[r])
    bits = 1e-5 if case["dtype"] == "float32" else 1e-2
    close(dw.T if case["tied"] else dw, 3 * dw_DV, bits)
    for got, wanted in zip(dx, dx_Q, strict=True):
        close(got, 3 * wanted, bits)
