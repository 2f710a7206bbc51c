"""The gated delta rule against an oracle of float64 loops, and its short convolution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from moejax.models.delta_rule import DeltaInput, find_fresh, in_chunks, step_by_step
from moejax.models.short_convolution import convolve, convolve_on

B, N, J, H, A, U = 2, 13, 2, 4, 3, 5
chunked = jax.jit(in_chunks, static_argnames="chunk")
stepped = jax.jit(step_by_step)
SEGMENTS = np.array(
    [[0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 2, 2, 2, 2, 3, 0, 0]], np.int32
)
"""A prompt after empty slots; packed documents with padding in one, and behind the last."""


def oracle(q, k, v, log_decay, beta, segments):
    """Every row, head and position in a loop, each document from an empty memory."""
    y = np.zeros(v.shape)
    for b in range(len(q)):
        for h in range(v.shape[2]):
            j = h // (v.shape[2] // k.shape[2])
            S, document = np.zeros((k.shape[3], v.shape[3])), 0
            for n in range(q.shape[1]):
                if segments[b, n] == 0:
                    continue
                if segments[b, n] != document:
                    S, document = np.zeros_like(S), segments[b, n]
                S = np.exp(log_decay[b, n, h]) * S
                S = S + beta[b, n, h] * np.outer(k[b, n, j], v[b, n, h] - k[b, n, j] @ S)
                y[b, n, h] = q[b, n, j] @ S
    return y


def draw(rows=B, length=N, seed=0):
    """Queries, unit keys, values, log decays from nearly all kept to nearly nothing, and betas."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, rows, length, J, A))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v = rng.normal(size=(rows, length, H, U))
    log_decay = -np.exp(rng.uniform(-4, 2.5, (rows, length, H)))
    return q, k, v, log_decay, rng.uniform(0, 1, (rows, length, H))


def as_input(q, k, v, log_decay, beta, segments) -> DeltaInput:
    """As a layer gives it: padding keeps all and writes nothing."""
    real = (segments > 0)[..., None]
    fresh = find_fresh(jnp.asarray(segments))
    return DeltaInput(q, k, v, jnp.where(real, log_decay, 0), jnp.where(real, beta, 0), fresh)


def test_one_number_is_written_corrected_and_forgotten():
    """By hand: keys are 1, so the memory is one number. 8 is written half, 4; half of that is kept,
    2, and corrected by half of the way to 6, 4; a new document finds nothing.
    """
    one = jnp.ones((1, 3, 1, 1))
    x = DeltaInput(
        q_BNJA=one,
        k_BNJA=one,
        v_BNHU=jnp.array([8.0, 6.0, 10.0]).reshape(1, 3, 1, 1),
        log_decay_BNH=jnp.log(jnp.array([0.5, 0.5, 0.5])).reshape(1, 3, 1),
        beta_BNH=jnp.full((1, 3, 1), 0.5),
        fresh_BN=jnp.array([[True, False, True]]),
    )
    for form in (stepped, chunked):
        y_BNHU, state_BHAU = form(x)
        np.testing.assert_allclose(y_BNHU.ravel(), [4, 4, 5], rtol=1e-6)
        np.testing.assert_allclose(state_BHAU.ravel(), [5], rtol=1e-6)


def test_both_forms_are_the_oracle_whatever_the_chunk():
    drawn = draw()
    x = as_input(*(jnp.asarray(a, jnp.float32) for a in drawn), SEGMENTS)
    want, real = oracle(*drawn, SEGMENTS), SEGMENTS > 0
    steps_BNHU, last_BHAU = stepped(x)
    np.testing.assert_allclose(np.asarray(steps_BNHU)[real], want[real], atol=1e-5)
    for chunk in (1, 5, 16):  # one that divides the length, one that does not, one that is longer
        y_BNHU, state_BHAU = chunked(x, chunk=chunk)
        np.testing.assert_allclose(np.asarray(y_BNHU)[real], want[real], atol=1e-5)
        np.testing.assert_allclose(state_BHAU, last_BHAU, atol=1e-5)


def test_pieces_go_on_from_the_memory_of_those_before():
    x = as_input(*(jnp.asarray(a, jnp.float32) for a in draw()), SEGMENTS)
    whole_BNHU, last_BHAU = stepped(x)
    state_BHAU, found = jnp.zeros((B, H, A, U)), []
    for first, end in ((0, 6), (6, 7), (7, N)):  # a border of documents at the second
        piece = jax.tree.map(lambda a, first=first, end=end: a[:, first:end], x)
        y_BNHU, state_BHAU = chunked(piece, state_BHAU, chunk=4)
        found.append(y_BNHU)
    np.testing.assert_allclose(jnp.concatenate(found, 1), whole_BNHU, atol=1e-5)
    np.testing.assert_allclose(state_BHAU, last_BHAU, atol=1e-5)


def test_gradients_are_those_of_the_float64_steps():
    drawn = draw(seed=1)
    weight = np.random.default_rng(2).normal(size=(B, N, H, U)) * (SEGMENTS > 0)[..., None, None]

    def loss(form, state, *arrays):
        x = as_input(*arrays, SEGMENTS)
        return (form(x, state)[0] * weight.astype(arrays[0].dtype)).sum()

    with jax.enable_x64(True):
        steps = jax.grad(lambda *a: loss(step_by_step, jnp.zeros((B, H, A, U)), *a), range(5))
        want = [np.asarray(g) for g in jax.jit(steps)(*drawn)]
    chunks = jax.grad(lambda *a: loss(lambda x, s: in_chunks(x, s, 4), None, *a), range(5))
    got = jax.jit(chunks)(*(a.astype(np.float32) for a in drawn))
    for name, one, other in zip(DeltaInput._fields, got, want, strict=False):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max(), err_msg=name)


def test_strong_decay_leaves_no_rounding_behind():
    """Memories of what is written after it are exact to float32's last digits."""
    q, k, v, _, beta = draw(1, 64)
    log_decay = np.full((1, 64, H), -0.001)
    log_decay[:, :32] = -3e4
    segments = np.ones((1, 64), np.int32)
    x = as_input(*(jnp.asarray(a, jnp.float32) for a in (q, k, v, log_decay, beta)), segments)
    want = oracle(q, k, v, log_decay, beta, segments)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def run(log_decay_BNH):
        y_BNHU, _ = in_chunks(x._replace(log_decay_BNH=log_decay_BNH))
        return y_BNHU.sum(), y_BNHU

    (_, y_BNHU), gradient_BNH = run(x.log_decay_BNH)
    np.testing.assert_allclose(y_BNHU, want, atol=1e-5)
    assert np.isfinite(gradient_BNH).all()


def test_no_array_of_the_chunked_form_grows_with_the_square_of_the_length():
    def numbers(length):
        shapes = [jnp.asarray(a, jnp.float32) for a in draw(1, length)]
        x = as_input(*shapes, np.ones((1, length), np.int32))
        jaxpr = jax.make_jaxpr(jax.grad(lambda x: in_chunks(x, chunk=8)[0].sum(), allow_int=True))
        return max(v.aval.size for e in jaxpr(x).eqns for v in e.outvars)

    assert numbers(256) == 4 * numbers(64)


def test_where_documents_begin():
    want = np.zeros((B, N), bool)
    want[0, 2] = want[1, [0, 6, 10]] = True
    np.testing.assert_array_equal(find_fresh(jnp.asarray(SEGMENTS)), want)


def test_the_convolution_looks_at_the_last_inputs_of_a_document():
    """By hand: with weights 100, 10, 1 the digits are the inputs."""
    x_BNX = jnp.array([1.0, 2, 3, 4, 5]).reshape(1, 5, 1)
    w_WX = jnp.array([[100.0], [10], [1]])
    fresh_BN = jnp.array([[True, False, False, True, False]])
    assert convolve(x_BNX, w_WX, fresh_BN).ravel().tolist() == [1, 12, 123, 4, 45]


def test_the_convolution_goes_on_in_pieces_and_passes_padding_over():
    rng = np.random.default_rng(0)
    x_BNX, w_WX = jnp.asarray(rng.normal(size=(B, N, 3))), jnp.asarray(rng.normal(size=(4, 3)))
    real_BN = SEGMENTS > 0
    want = np.zeros((B, N, 3))
    for b in range(B):
        for n in np.flatnonzero(real_BN[b]):
            mine = np.flatnonzero(SEGMENTS[b, : n + 1] == SEGMENTS[b, n])[::-1][:4]
            want[b, n] = sum(x_BNX[b, m] * w_WX[3 - i] for i, m in enumerate(mine))
    run = jax.jit(convolve_on)
    last_BWX, fresh, first = jnp.zeros((B, 3, 3)), find_fresh(jnp.asarray(SEGMENTS)), 0
    for end in (1, 2, 7, 8, N):
        real = real_BN[:, first:end]
        y, last_BWX = run(x_BNX[:, first:end], w_WX, fresh[:, first:end], real, last_BWX)
        np.testing.assert_allclose(np.asarray(y)[real], want[:, first:end][real], atol=1e-5)
        first = end
