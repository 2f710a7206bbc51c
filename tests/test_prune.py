"""Models with fewer experts: which are kept, what they then compute, and what cannot be pruned."""

import json
from dataclasses import replace

import flax.linen as nn
import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

import moejax.hf
from moejax.commands.main import run
from moejax.config import ConfigError, ModelConfig, MoEConfig
from moejax.data.byte_tokenizer import make_byte_tokenizer_files
from moejax.hf.reading import make_batch
from moejax.inference.prune import choose_kept, count_kept, prune
from moejax.lab.saliency import Measure, score_experts
from moejax.models.decoder import DecoderLM
from moejax.moe.experts import bank_shapes, network
from moejax.moe.layer import MoELayer


def test_the_best_are_kept_in_their_order_and_equally_from_each_group():
    score_LE = np.array([[3.0, 1.0, 2.0, 2.0, 9.0, 0.0, 8.0, 7.0]])
    assert choose_kept(score_LE, 4).tolist() == [[0, 4, 6, 7]]
    assert choose_kept(score_LE, 4, groups=2).tolist() == [[0, 2, 4, 6]]
    assert choose_kept(np.zeros((1, 4)), 2).tolist() == [[0, 1]]  # the first of equal ones


def test_scores():
    """Two experts: one is chosen often for little, one seldom for much; the third never."""
    sums_L3E = np.array([[[4.0, 1.0, 0.0], [4.0, 3.0, 0.0], [2.0, 1.5, 0.0]]])
    assert score_experts(sums_L3E, "load").tolist() == [[4, 1, 0]]
    assert score_experts(sums_L3E, "norm").tolist() == [[4, 3, 0]]
    assert score_experts(sums_L3E, "reap").tolist() == [[0.5, 1.5, 0]]
    drawn = [score_experts(sums_L3E, "random", seed) for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def of_model(**moe) -> ModelConfig:
    return ModelConfig(vocab_size=64, moe=MoEConfig(**{"num_experts": 8, "top_k": 2} | moe))


@pytest.mark.parametrize(
    ("config", "keep", "words"),
    [
        (of_model(every=0), 0.5, "a dense model has no experts to prune"),
        (of_model(), 0.0, "--keep must be between 0 and 1, such as 0.5, not 0.0"),
        (of_model(), 1.0, "--keep must be between 0 and 1"),
        (of_model(), -0.5, "--keep must be between 0 and 1"),
        (of_model(), float("nan"), "--keep must be between 0 and 1"),
        (of_model(), 0.97, "--keep 0.97 leaves 8 of the 8 experts of a layer: give a smaller"),
        (of_model(), 0.1, "leaves 1 of the 8 experts of a layer, but a token chooses 2: keep at"),
        (
            of_model(router="deepseek_v3", expert_groups=4, kept_expert_groups=2),
            0.6,
            "leaves 5 of the 8 experts of a layer, which cannot be shared equally by the model's 4",
        ),
        (
            of_model(router="deepseek_v3", expert_groups=4, kept_expert_groups=2),
            0.5,
            "leaves 4 of the 8 experts of a layer, too few in each of the model's 4 groups",
        ),
        (
            of_model(router="deepseek_v2", expert_groups=4, kept_expert_groups=1),
            0.5,
            "of which a token chooses 2 in 1: keep more",
        ),
        (of_model(router="soft"), 0.5, "--model.moe.router soft: experts can be pruned where"),
        (of_model(router="hash"), 0.5, "--model.moe.router hash: experts can be pruned where"),
        (of_model(router="expert_choice"), 0.5, "router expert_choice: experts can be pruned"),
    ],
)
def test_what_cannot_be_pruned_is_named(config, keep, words):
    with pytest.raises(ConfigError) as caught:
        count_kept(config, keep)
    assert words in str(caught.value)


def test_a_layer_by_hand():
    """One token after the other: weight times norm, of the experts that it chose."""
    moe = MoEConfig(num_experts=4, top_k=2, hidden_size=8, group_size=1, capacity_factor=None)
    moe = replace(moe, eval_capacity_factor=None)
    layer, rng = MoELayer(moe, "swiglu"), np.random.default_rng(0)
    shapes = bank_shapes("swiglu", 4, 6, 8) | {"w_router_DE": (6, 4)}
    own = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x_BND = rng.normal(size=(8, 3, 6)).astype(np.float32)
    real_BN = np.ones((8, 3), bool)
    real_BN[2, 1] = False
    with nn.intercept_methods(Measure()):
        apply = jax.jit(lambda p: layer.apply({"params": p}, x_BND, real_BN, training=False))
        _, _, sums_3E = apply(own)
    want_3E = np.zeros((3, 4))
    for b, n in zip(*np.nonzero(real_BN), strict=True):
        x_D = x_BND[b, n]
        logits_E = x_D @ own["w_router_DE"]
        best = np.argsort(-logits_E)[:2]
        weight_K = np.exp(logits_E[best] - logits_E[best].max())
        for e, weight in zip(best, weight_K / weight_K.sum(), strict=True):
            bank = {name: w[e] for name, w in own.items() if name != "w_router_DE"}
            norm = np.linalg.norm(network(bank, x_D[None], "swiglu"))
            want_3E[:, e] += 1, norm, weight * norm
    np.testing.assert_allclose(sums_3E, want_3E, rtol=1e-5)


@pytest.mark.parametrize(
    "case", ["gpt_oss", pytest.param("deepseek_v3_as_kimi_k2", marks=pytest.mark.slow)]
)
def test_a_pruned_model_computes_as_if_the_others_were_never_chosen(case, tmp_path):
    """As they are not where their logits, or their selection bias, are far below the others'."""
    model, ids = moejax.hf.load(hf_models.write(tmp_path, case)), hf_models.prompt()
    L, E = sum(model.config.routed_layers), model.config.moe.num_experts
    expert_LY = choose_kept(np.random.default_rng(0).random((L, E)), 4)
    config, params, bias_LE = prune(model.config, model.params, model.bias_LE, expert_LY)
    far_LE = np.full((L, E), -1e9, np.float32)
    np.put_along_axis(far_LE, expert_LY, 0, axis=1)
    whole = model.params
    if bias_LE is None:
        arrays = flatten_dict(whole)
        (name,) = [path for path in arrays if path[-1] == "b_router_E"]
        whole = unflatten_dict(arrays | {name: arrays[name] + far_LE})
    else:
        model = replace(model, bias_LE=model.bias_LE + far_LE)
    want = model.apply(whole, ids)
    small = replace(model, config=config, params=params, bias_LE=bias_LE)
    np.testing.assert_allclose(small.apply(params, ids), want, atol=1e-5)
    assert config.moe.num_experts == 4


@pytest.mark.slow
def test_the_command_writes_a_model_of_the_same_family_and_says_what_was_lost(tmp_path, capsys):
    moe = MoEConfig(num_experts=6, top_k=2, hidden_size=8, group_size=1, capacity_factor=None)
    moe = replace(moe, eval_capacity_factor=None, identity_experts=0)
    config = ModelConfig(num_layers=1, width=16, num_heads=2, vocab_size=257, moe=moe)
    decoder, batch = DecoderLM(config, 257), make_batch(jnp.zeros((8, 1), jnp.int32))
    params = decoder.init(jax.random.key(0), batch, False)["params"]
    source, out = tmp_path / "in", tmp_path / "out"
    assert moejax.hf.save(source, config, params) == "qwen3_moe"
    for name, content in make_byte_tokenizer_files().items():
        (source / name).write_text(json.dumps(content))
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + i * i % 26) for i in range(1000)))
    given = ["--data", str(text), "--batch-size", "8", "--sequence-length", "16"]
    run(["prune", str(source), str(out), "--compare", "2", *given, "--json"])
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert "as qwen3_moe" in said.err
    assert (figures["experts"], figures["kept"], figures["by"]) == (6, 3, "reap")
    assert figures["measure"] == "bits_per_byte" and len(figures["random"]) == 2
    assert figures["lost"] == pytest.approx(figures["pruned"] - figures["whole"])
    small, whole = load_file(out / "model.safetensors"), load_file(source / "model.safetensors")
    router, bank = (
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.experts.{}.down_proj.weight",
    )
    kept = [int(np.flatnonzero((whole[router] == row).all(-1))[0]) for row in small[router]]
    assert kept == sorted(kept) and len(kept) == 3
    for new, old in enumerate(kept):
        assert np.array_equal(small[bank.format(new)], whole[bank.format(old)])
    assert moejax.hf.load(out).config.moe.num_experts == 3
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    with pytest.raises(ConfigError, match="leaves 1 of the 6 experts of a layer, but a token"):
        run(["prune", str(source), str(tmp_path / "new"), "--keep", "0.2", *given])
    with pytest.raises(ConfigError, match="pruning needs two, one to choose by"):
        run(["prune", str(source), str(tmp_path / "new"), *given, "--batches", "1"])
    with pytest.raises(ConfigError, match="--data is missing"):
        run(["prune", str(source), str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
