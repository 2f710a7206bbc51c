"""Released families read and written: against what transformers says of the same tiny models."""

import json
import shutil
import tracemalloc

import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

import moejax.hf
from moejax.config import MeshConfig
from moejax.hf.reading import make_batch
from moejax.models.counts import cost
from moejax.moe import balance
from moejax.runtime import device_mesh

# One of each family; the other shapes are in test_hf_parity.py.
QUICK = ("mixtral_window_tied", "qwen2_moe_k1_every_second", "qwen3_moe", "olmoe_k1")
QUICK += ("deepseek_v2_lite_yarn", "deepseek_v3", "gpt_oss", "granitemoe_scales", "llama")
QUICK += ("afmoe",)  # with windows, parts without positions, a gate, and norms on both sides


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A function that writes a tiny model's directory, once."""
    written = {}

    def of(case: str):
        if case not in written:
            written[case] = hf_models.write(tmp_path_factory.mktemp(case), case)
        return written[case]

    return of


@pytest.mark.parametrize("case", QUICK)
def test_logits_and_auxiliary_loss_are_those_of_transformers(case, checkpoint):
    model, want = moejax.hf.load(checkpoint(case)), hf_models.golden(case)
    batch = make_batch(hf_models.prompt())
    run = jax.jit(lambda p: model.model.apply({"params": p}, batch, False, model.bias_LE))
    logits_BNV, routed = run(model.params)
    np.testing.assert_allclose(logits_BNV, want["logits_BNV"], atol=1e-4, rtol=0)
    if case == QUICK[0]:
        found = model.apply(model.params, hf_models.prompt())
        np.testing.assert_allclose(found, logits_BNV, atol=1e-5, rtol=0)
    if np.isnan(want["loss"]):
        return
    loss = balance.pooled_balance_loss(balance.sum_sequences(routed.stats))
    np.testing.assert_allclose(loss[0] if loss.ndim else loss, want["loss"], rtol=1e-5)


@pytest.mark.parametrize("case", QUICK)
def test_import_and_export_give_every_byte_back(case, checkpoint, tmp_path):
    """Also where the config.json is written from our settings alone; and the model's size is the
    one that its config says.
    """
    model = moejax.hf.load(checkpoint(case), "auto")
    read = load_file(checkpoint(case) / "model.safetensors")
    kind = model.hf["model_type"]
    for number, hf in enumerate((model.hf, None)):
        out = tmp_path / str(number)
        written = moejax.hf.save(out, model.config, model.params, model.bias_LE, hf=hf, family=kind)
        assert written == kind
        again = load_file(out / "model.safetensors")
        assert {n: (x.dtype, x.shape, x.tobytes()) for n, x in again.items()} == {
            n: (x.dtype, x.shape, x.tobytes()) for n, x in read.items()
        }
        told = json.loads((out / "config.json").read_text())
        assert told["dtype"] == "float32"
        assert moejax.hf.load(out, "auto").config == model.config
    buffers = sum(x.size for n, x in read.items() if hf_models.is_selection_bias(n))
    total = sum(x.size for x in read.values()) - buffers
    assert cost(model.config, hf_models.V, 1).parameters_total == total


def test_padding_on_either_side_changes_nothing(checkpoint):
    model, ids = moejax.hf.load(checkpoint("gpt_oss")), hf_models.prompt()
    alone = np.asarray(model.apply(model.params, ids))
    for before, after in ((5, 0), (0, 5), (2, 3)):
        padded = np.pad(ids, ((0, 0), (before, after)), constant_values=7)
        real = np.pad(np.ones_like(ids), ((0, 0), (before, after)))
        logits_BNV = model.apply(model.params, padded, real)[:, before : before + ids.shape[1]]
        np.testing.assert_allclose(logits_BNV, alone, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_on_eight_devices_each_gets_its_own_experts_alone(fsdp, checkpoint):
    """No device holds all experts, and none of their tensors is read for another's."""
    layout = MeshConfig(data=2, expert=4, fsdp=fsdp)
    mesh = device_mesh.make_mesh(layout)
    model = moejax.hf.load(checkpoint("deepseek_v3"), mesh=mesh, layout=layout)
    for path, array in flatten_dict(model.params).items():
        if path[-1] not in ("w_gate_EDF", "w_up_EDF", "w_down_EFD"):
            continue
        for shard in array.addressable_shards:
            assert shard.data.size == array.size // (8 if fsdp else 4)
            own = shard.index[1]
            assert own.stop - own.start == 2  # of 8 experts
    ids = np.tile(hf_models.prompt()[:2], (4, 1))
    with jax.set_mesh(mesh):
        logits_BNV = np.asarray(model.apply(model.params, ids))
    want = hf_models.golden("deepseek_v3")["logits_BNV"][:2]
    np.testing.assert_allclose(logits_BNV, np.tile(want, (4, 1, 1)), atol=1e-4, rtol=0)


def test_the_host_never_has_more_than_the_experts_of_one_layer(tmp_path):
    """Of a model of 50 MB in eight layers."""
    sizes = {"hidden_size": 64, "intermediate_size": 1024, "num_local_experts": 8}
    config = hf_models.CASES["mixtral"] | sizes | {"num_hidden_layers": 8}
    shapes = {"model.norm.weight": [64]}
    shapes |= {name: [64, 64] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    for layer in range(8):
        at = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}{name}.weight"] = [64]
        for name, width in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = [width, 64]
        shapes[f"{at}block_sparse_moe.gate.weight"] = [8, 64]
        for e in range(8):
            for name, shape in (("w1", [1024, 64]), ("w2", [64, 1024]), ("w3", [1024, 64])):
                shapes[f"{at}block_sparse_moe.experts.{e}.{name}.weight"] = shape
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    hf_models.save_file(tensors, tmp_path / "model.safetensors")
    assert sum(x.nbytes for x in tensors.values()) > 50e6
    del tensors
    moejax.hf.load(tmp_path)  # compiles
    tracemalloc.start()
    model = moejax.hf.load(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    bank = 8 * 64 * 1024 * 4
    assert bank < peak < 3 * bank, (peak, bank)
    assert model.config.num_layers == 8


def test_shards_and_their_index(checkpoint, tmp_path):
    """A model in many files is the same, and no file is larger than asked for."""
    model = moejax.hf.load(checkpoint("qwen3_moe"))
    out = tmp_path / "out"
    moejax.hf.save(out, model.config, model.params, hf=model.hf, shard_bytes=20_000)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((out / name).stat().st_size < 40_000 for name in files)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    again = moejax.hf.load(out)
    for one, other in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(again.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_bfloat16_is_read_written_and_computed_in(checkpoint, tmp_path):
    """The selection bias stays float32 in all of it."""
    model = moejax.hf.load(checkpoint("deepseek_v3"), "bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)} == {"bfloat16"}
    assert model.bias_LE.dtype == jnp.float32
    assert model.config.dtype == "bfloat16"
    logits_BNV = model.apply(model.params, hf_models.prompt())
    want = hf_models.golden("deepseek_v3")["logits_BNV"]
    assert np.abs(logits_BNV - want).mean() < 0.1
    moejax.hf.save(tmp_path / "out", model.config, model.params, model.bias_LE, hf=model.hf)
    written = load_file(tmp_path / "out" / "model.safetensors")
    kinds = {name: str(x.dtype) for name, x in written.items()}
    biases = [name for name in kinds if name.endswith("correction_bias")]
    assert {kinds.pop(name) for name in biases} == {"float32"}
    assert set(kinds.values()) == {"bfloat16"}
    again = moejax.hf.load(tmp_path / "out", "auto")
    for one, other in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(again.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_gradient_reaches_every_parameter(checkpoint):
    model, ids = moejax.hf.load(checkpoint("gpt_oss")), hf_models.prompt()
    weight_BNV = jax.random.normal(jax.random.key(0), (*ids.shape, hf_models.V))
    grads = jax.jit(jax.grad(lambda p: (model.apply(p, ids) * weight_BNV).sum()))(model.params)
    for path, grad in flatten_dict(grads).items():
        assert np.abs(grad).max() > 1e-6, path


def test_what_is_beside_a_checkpoint_goes_with_it(checkpoint, tmp_path):
    source = shutil.copytree(checkpoint("mixtral_window_tied"), tmp_path / "in")
    (source / "tokenizer_config.json").write_text('{"a": 1}')
    (source / "run_me.py").write_text("raise SystemExit(1)")
    model = moejax.hf.load(source)
    out = tmp_path / "out"
    moejax.hf.save(out, model.config, model.params, hf=model.hf, files_from=source)
    assert (out / "tokenizer_config.json").read_text() == '{"a": 1}'
    assert not (out / "run_me.py").exists()
