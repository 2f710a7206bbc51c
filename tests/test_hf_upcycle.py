"""Sparse upcycling: to begin with, the routed model computes what the dense one did."""

import hf_models
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import moejax.hf
from moejax.config import ConfigError
from moejax.hf.reading import Pretrained, array_shapes
from moejax.hf.upcycle import upcycle, upcycle_config


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A Llama of two layers."""
    return moejax.hf.load(hf_models.write(tmp_path_factory.mktemp("dense"), "llama"))


def routed(dense, *, noise: float = 0.0, split: int = 1, seed: int = 0, **settings) -> Pretrained:
    """The upcycled model."""
    config = upcycle_config(dense.config, split=split, **settings)
    params = upcycle(dense.config, dense.params, config, split=split, noise=noise, seed=seed)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(params).items()}
    assert shapes == array_shapes(config)
    return Pretrained(config, params, None, dense.hf, dense.directory)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_experts": 4, "top_k": 2},
        {"num_experts": 8, "top_k": 4, "split": 2},  # two whole copies of two halves
        {"num_experts": 8, "top_k": 4, "split": 4},  # one whole copy of four quarters
        {"num_experts": 4, "top_k": 2, "every": 2},
    ],
)
def test_the_output_is_that_of_the_dense_model(settings, dense):
    model = routed(dense, **settings)
    got = model.apply(model.params, hf_models.prompt())
    want = dense.apply(dense.params, hf_models.prompt())
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert sum(model.config.routed_layers) == 2 // settings.get("every", 1)
    assert model.config.moe.hidden_size == 40 // settings.get("split", 1)


def test_tokens_choose_whole_copies_and_not_all_the_same(dense):
    """With 8 experts of a quarter each, a token's four are those of one of the two copies."""
    model = routed(dense, num_experts=8, top_k=4, split=4)
    from moejax.hf.reading import make_batch

    _, said = jax.jit(
        lambda p: model.model.apply({"params": p}, make_batch(hf_models.prompt()), False)
    )(model.params)
    chosen_LTC4 = np.asarray(said.chosen_LBNE).reshape(2, -1, 2, 4)
    np.testing.assert_array_equal(chosen_LTC4.any(-1), chosen_LTC4.all(-1))
    share_LC = chosen_LTC4.all(-1).mean(1)
    assert (share_LC > 0.05).all() and (share_LC < 0.95).all()


def test_noise_makes_experts_differ_by_as_much_as_is_said(dense):
    plain = flatten_dict(routed(dense, num_experts=4, top_k=2).params)
    noisy = flatten_dict(routed(dense, num_experts=4, top_k=2, noise=0.1).params)
    path = ("layers_0", "block_0", "moe", "w_up_EDF")
    change = np.asarray(noisy[path] - plain[path])
    assert 0.09 < change.std() / np.std(plain[path]) < 0.11
    assert np.ptp(change, axis=1).min() > 0  # in each expert
    assert not np.array_equal(change[:, 0], change[:, 1])
    other = flatten_dict(routed(dense, num_experts=4, top_k=2, noise=0.1, seed=1).params)
    assert not np.array_equal(noisy[path], other[path])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 4, "top_k": 1}, "--top-k must be at least 2"),
        ({"num_experts": 4, "top_k": 8}, "--model.moe.top-k 8 asks for more experts"),
        ({"num_experts": 8, "top_k": 4, "split": 3}, "the hidden width 40, unlike 3"),
        ({"num_experts": 9, "top_k": 4, "split": 2}, "--split must divide --num-experts 9"),
        ({"num_experts": 8, "top_k": 3, "split": 2}, "--split must divide --top-k 3"),
        ({"num_experts": 8, "top_k": 2, "split": 0}, "unlike 0"),
        ({"num_experts": 8, "top_k": 2, "every": 0}, "--every must be at least 1"),
    ],
)
def test_what_cannot_be_upcycled_is_named(settings, message, dense):
    with pytest.raises(ConfigError, match=message):
        upcycle_config(dense.config, **settings)


def test_a_routed_model_is_not_upcycled_again(dense):
    config = upcycle_config(dense.config, num_experts=4, top_k=2)
    with pytest.raises(ConfigError, match="begins with a dense model"):
        upcycle_config(config, num_experts=4, top_k=2)
