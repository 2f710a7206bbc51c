"""Beside transformers itself, where it is installed: gradients, choices, padding, text, keys."""

import importlib.util

import hf_models
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

import moejax.hf
from moejax.config import Config, DataConfig, ModelConfig, MoEConfig, RunConfig
from moejax.hf import accounts
from moejax.hf.reading import array_shapes, make_batch
from moejax.hf.upcycle import upcycle, upcycle_config
from moejax.moe import balance

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
        reason="needs torch and transformers (pip install -e '.[peers]')",
    ),
    pytest.mark.filterwarnings("ignore"),  # theirs
]


def theirs(directory):
    """The model in transformers, in float32, and what it says of the directory's tensors."""
    import torch
    from transformers import AutoModelForCausalLM

    model, said = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    return model.eval(), {name: keys for name, keys in said.items() if keys}


def logits_of(model, ids, real=None):
    """``logits_BNV`` of theirs."""
    import torch

    mask = None if real is None else torch.tensor(real, dtype=torch.int64)
    with torch.no_grad():
        return model(torch.tensor(ids, dtype=torch.int64), attention_mask=mask).logits.numpy()


@pytest.mark.parametrize("case", list(hf_models.CASES))
def test_logits_under_padding_and_all_gradients(case, tmp_path):
    import torch

    directory = hf_models.write(tmp_path, case)
    model, (peer, _) = moejax.hf.load(directory), theirs(directory)
    ids = hf_models.prompt()
    for before, after in ((0, 0), (3, 0), (0, 3)):
        padded = np.pad(ids, ((0, 0), (before, after)))
        real = np.pad(np.ones_like(ids), ((0, 0), (before, after)))
        real[0, : before + 2 * (before > 0)] = 0  # one row is shorter
        want = logits_of(peer, padded, real)
        got = np.asarray(model.apply(model.params, padded, real))
        np.testing.assert_allclose(got[real > 0], want[real > 0], atol=1e-4, rtol=0)

    weight_BNV = np.random.default_rng(1).normal(size=(*ids.shape, hf_models.V)).astype(np.float32)
    # One with many alike: its gradients are the same, whoever is meant by a tied tensor.
    loss = (peer(torch.tensor(ids, dtype=torch.int64)).logits * torch.tensor(weight_BNV)).sum()
    loss.backward()
    grads = {n: p.grad.numpy() for n, p in peer.named_parameters() if p.grad is not None}
    ours = jax.jit(jax.grad(lambda p: (model.apply(p, ids) * weight_BNV).sum()))(model.params)
    compared = 0
    for name, got in on_disk(case, model, ours).items():
        want = of_name(name, grads)
        size = max(np.abs(want).max(), 1e-3)
        np.testing.assert_allclose(got / size, want / size, atol=1e-4, rtol=0, err_msg=name)
        compared += 1
    assert compared == sum(not hf_models.is_selection_bias(n) for n in hf_models.shapes(case))


def on_disk(case, model, tree) -> dict[str, np.ndarray]:
    """A tree like our parameters under the names of their tensors."""
    shapes = {k: v for k, v in array_shapes(model.config).items() if k != accounts.BIAS}
    arrays = flatten_dict(tree)
    found = {}
    for entry in accounts.list_entries(model.hf["model_type"], model.config, shapes):
        index = () if entry.index is None else entry.index
        parts = [np.asarray(arrays[path][index]) for path in entry.paths]
        for e, name in enumerate(entry.names):
            own = [part[e] for part in parts] if entry.rule.is_per_expert else parts
            found[name] = entry.rule.write(own, model.config)
    return found


def of_name(name: str, grads: dict[str, np.ndarray]) -> np.ndarray:
    """The gradient of a tensor on disk, in their model's fused parameters."""
    name = hf_models.in_transformers(name)
    if name in grads:
        return grads[name]
    above, _, rest = name.replace("block_sparse_moe", "mlp").partition(".experts.")
    expert, part, *_ = rest.split(".")
    fused = grads[
        f"{above}.experts.{'down_proj' if part in ('w2', 'down_proj') else 'gate_up_proj'}"
    ]
    fused = fused[int(expert)]
    if part in ("w2", "down_proj"):
        return fused
    half = fused.shape[0] // 2
    return fused[:half] if part in ("w1", "gate_proj") else fused[half:]


@pytest.mark.parametrize("case", hf_models.ROUTED)
def test_every_token_chooses_the_same_experts_and_the_auxiliary_loss_is_the_same(case, tmp_path):

    directory = hf_models.write(tmp_path, case)
    model, (peer, _) = moejax.hf.load(directory), theirs(directory)
    chosen = []
    for module in peer.modules():
        if type(module).__name__.endswith("TopKRouter") or type(module).__name__.endswith(
            "TopkRouter"
        ):
            module.register_forward_hook(lambda *args: chosen.append(args[2][-1].numpy()))
    ids = hf_models.prompt()
    logits_of(peer, ids)
    _, routed = jax.jit(
        lambda p: model.model.apply({"params": p}, make_batch(ids), False, model.bias_LE)
    )(model.params)
    want = hf_models.golden(case)["loss"]
    if not np.isnan(want):
        stats = balance.sum_sequences(routed.stats)
        np.testing.assert_allclose(balance.pooled_balance_loss(stats)[0], want, rtol=1e-5)
    chosen_LTE = np.asarray(routed.chosen_LBNE).reshape(
        len(chosen), -1, model.config.moe.num_experts
    )
    for ours_TE, theirs_TK in zip(chosen_LTE, chosen, strict=True):
        want_TE = np.zeros_like(ours_TE)
        np.put_along_axis(want_TE, theirs_TK.reshape(len(ours_TE), -1), True, axis=1)
        np.testing.assert_array_equal(ours_TE, want_TE)


@pytest.mark.parametrize("case", list(hf_models.CASES))
def test_an_export_has_every_byte_and_no_missing_or_unexpected_keys(case, tmp_path):
    """Also one whose config.json was written from our settings alone."""
    model = moejax.hf.load(hf_models.write(tmp_path / "in", case))
    want = hf_models.golden(case)["logits_BNV"]
    given = {name: x.tobytes() for name, x in hf_models.tensors(case).items()}
    for number, hf in enumerate((model.hf, None)):
        out = tmp_path / str(number)
        kind = model.hf["model_type"]
        moejax.hf.save(out, model.config, model.params, model.bias_LE, hf=hf, family=kind)
        written = load_file(out / "model.safetensors")
        assert {name: x.tobytes() for name, x in written.items()} == given
        peer, said = theirs(out)
        assert not said
        np.testing.assert_allclose(logits_of(peer, hf_models.prompt()), want, atol=1e-5)


@pytest.mark.parametrize("settings", [{"split": 1, "top_k": 2}, {"split": 2, "top_k": 4}])
def test_an_upcycled_model_is_one_of_theirs_and_computes_what_the_dense_one_did(settings, tmp_path):
    dense = moejax.hf.load(hf_models.write(tmp_path / "in", "qwen3"))
    config = upcycle_config(dense.config, num_experts=8, **settings)
    params = upcycle(dense.config, dense.params, config, split=settings["split"])
    assert moejax.hf.save(tmp_path / "out", config, params, hf=dense.hf) == "qwen3_moe"
    peer, said = theirs(tmp_path / "out")
    assert not said
    want = hf_models.golden("qwen3")["logits_BNV"]
    np.testing.assert_allclose(logits_of(peer, hf_models.prompt()), want, atol=1e-4, rtol=0)


def test_a_model_trained_here_in_the_layout_of_mixtral_is_one_there(tmp_path):
    """A few steps of the quickstart's kind, exported by the command; bytes are its tokens."""
    from transformers import AutoTokenizer

    from moejax.commands.export import ExportSettings, export_model
    from moejax.config import MeshConfig
    from moejax.inference.opening import open_model
    from moejax.runtime import device_mesh
    from moejax.train.training import train

    config = Config(
        model=ModelConfig(
            num_layers=2,
            width=32,
            num_heads=4,
            num_kv_heads=2,
            qk_norm=False,
            moe=MoEConfig(num_experts=4, hidden_size=16, group_size=16),
        ),
        data=DataConfig(sequence_length=32, batch_size=8, eval_batch_size=8, shuffle_window=64),
        run=RunConfig(directory=str(tmp_path / "run"), steps=8, eval_batches=1, sample_tokens=0),
    )
    train(config, name="run", command="test")
    export_model(ExportSettings(source=tmp_path / "run", target=tmp_path / "out"))
    peer, said = theirs(tmp_path / "out")
    assert not said
    assert type(peer).__name__ == "MixtralForCausalLM"
    text = "def main(argv: list[str] | None = None) -> int:  # é\n"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = np.array([tokenizer(text)["input_ids"]], np.int32)
    layout = MeshConfig()
    mesh = device_mesh.make_mesh(layout)
    opened = open_model(tmp_path / "run", mesh=mesh, layout=layout)
    np.testing.assert_array_equal(ids[0], opened.begin(text))
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == text
    model = moejax.hf.load(tmp_path / "out")
    params = jax.device_put(jax.device_get(opened.params), jax.devices()[0])
    for tree in (model.params, params):
        got = np.asarray(model.apply(tree, ids))
        np.testing.assert_allclose(got, logits_of(peer, ids), atol=1e-4, rtol=0)
