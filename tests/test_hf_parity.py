"""Beside transformers itself, where it is installed: gradients, choices, padding, text, keys."""

import importlib.util
import json
from functools import partial

import hf_models
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

import moejax.hf
from moejax.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    RunConfig,
)
from moejax.hf import accounts
from moejax.hf.families import FAMILIES
from moejax.hf.reading import array_shapes, make_batch
from moejax.hf.upcycle import upcycle, upcycle_config
from moejax.moe import balance
from moejax.runtime.device_mesh import make_mesh
from moejax.train.gradients import gradients
from moejax.train.objective import losses

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

    kind = json.loads((directory / "config.json").read_text())["model_type"]
    model, said = hf_models.peer_class(kind).from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    return model.eval(), {name: keys for name, keys in said.items() if keys}


def logits_of(model, ids):
    """``logits_BNV`` of theirs."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids, dtype=torch.int64)).logits.numpy()


ROUTERS = ("topkrouter", "tokenchoicerouter", "moev1gate")
"""How the names of classes of routers end."""
BEFORE = (0, 3, 1)
"""Padding before each row of the prompt; behind it there are so many less than 3."""


@pytest.mark.parametrize("case", list(hf_models.CASES))
def test_it_computes_what_transformers_does(case, tmp_path):
    """Logits under padding, all gradients, every token's experts, and the auxiliary loss, which
    padding does not change.
    """
    directory = hf_models.write(tmp_path, case)
    model, (peer, _) = moejax.hf.load(directory), theirs(directory)
    prompt, B, N = hf_models.prompt(), len(BEFORE), hf_models.N
    ids_BN, real_BN = np.zeros((2, B, N + 3), np.int32)
    for row, before in enumerate(BEFORE):
        ids_BN[row, before : before + N], real_BN[row, before : before + N] = prompt[row], 1
    weight_BNV = np.random.default_rng(1).normal(size=(*ids_BN.shape, hf_models.V))
    weight_BNV = (weight_BNV * real_BN[..., None]).astype(np.float32)

    def loss_of(params):
        """One with many alike: its gradients are the same, whoever is meant by a tied tensor."""
        batch = make_batch(ids_BN, real_BN)
        logits_BNV, routed = model.model.apply({"params": params}, batch, False, model.bias_LE)
        return (logits_BNV * weight_BNV).sum(), (logits_BNV, routed)

    ours, (logits_BNV, routed) = jax.jit(jax.grad(loss_of, has_aux=True))(model.params)
    want_BNV, chosen, grads = run_theirs(peer, ids_BN, real_BN, weight_BNV)
    real = real_BN > 0
    np.testing.assert_allclose(logits_BNV[real], want_BNV[real], atol=1e-4, rtol=0)
    check_gradients(case, model, ours, grads)
    if routed is not None:
        check_routing(case, model, routed, chosen, real)


def run_theirs(peer, ids_BN, real_BN, weight_BNV):
    """Logits, what every layer's tokens chose, and the gradients of ``weight_BNV`` times logits."""
    import torch

    chosen = []
    for module in peer.modules():
        if type(module).__name__.lower().endswith(ROUTERS):
            module.register_forward_hook(lambda *args: chosen.append(args[2][-1].numpy()))
    ids, mask = (torch.tensor(array, dtype=torch.int64) for array in (ids_BN, real_BN))
    # From the first real token, as its generate() counts: not everywhere is distance all.
    positions = (mask.cumsum(1) - 1).clamp(min=0) * mask
    logits = peer(ids, attention_mask=mask, position_ids=positions).logits
    (logits * torch.tensor(weight_BNV)).sum().backward()
    grads = {n: p.grad.numpy() for n, p in peer.named_parameters() if p.grad is not None}
    return logits.detach().numpy(), chosen, grads


LEARNED = [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0]
"""Which tokens of a row are learned: the others are a prompt's, or padding."""


@pytest.mark.parametrize(("case", "parts"), [("mixtral", 1), ("olmoe", 3), ("ernie4_5_moe", 3)])
def test_the_whole_loss_is_theirs_with_prompts_and_padding(case, parts, tmp_path):
    """Cross-entropy of what is learned, and the coefficient times the balance of all tokens that
    are not padding, prompts included; and its gradients, from one micro-batch or several.
    """
    fields = {"router_aux_loss_coef": 0.5, "output_router_logits": True}
    directory = hf_models.write(tmp_path, case, **fields)
    model, (peer, _) = moejax.hf.load(directory), theirs(directory)
    prompt, N = hf_models.prompt(), hf_models.N
    ids_BN, real_BN, learned_BN = np.zeros((3, len(BEFORE), N + 3), np.int32)
    for row, before in enumerate(BEFORE):
        ids_BN[row, before : before + N], real_BN[row, before : before + N] = prompt[row], 1
        learned_BN[row] = real_BN[row] * LEARNED
    batch = make_batch(ids_BN, real_BN) | {
        "targets": np.roll(ids_BN, -1, 1),
        "counted": np.roll(learned_BN, -1, 1) * real_BN,
    }
    config = Config(
        model=model.config,
        data=DataConfig(batch_size=3, sequence_length=N + 3),
        optim=OptimConfig(accumulate=parts),
    )
    step = jax.jit(partial(gradients, model.model, config=config))
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        grads, sums = step(model.params, model.bias_LE, batch, jax.random.key(0))
    loss, auxiliary, want = run_their_loss(peer, ids_BN, real_BN, learned_BN)
    nats = sums.nats / sums.targets
    found = losses(sums.router, config.model.moe)["pooled_balance_loss"][0]
    np.testing.assert_allclose(found, auxiliary, rtol=1e-5)
    np.testing.assert_allclose(nats + 0.5 * found, loss, rtol=1e-5)
    check_gradients(case, model, grads, want)


def run_their_loss(peer, ids_BN, real_BN, learned_BN):
    """The loss, the balance loss in it, and the gradients of the whole."""
    import torch

    ids, mask = (torch.tensor(array, dtype=torch.int64) for array in (ids_BN, real_BN))
    labels = torch.where(torch.tensor(learned_BN) > 0, ids, -100)
    positions = (mask.cumsum(1) - 1).clamp(min=0) * mask
    said = peer(ids, attention_mask=mask, position_ids=positions, labels=labels)
    said.loss.backward()
    grads = {n: p.grad.numpy() for n, p in peer.named_parameters() if p.grad is not None}
    return float(said.loss), float(said.aux_loss), grads


def check_gradients(case, model, ours, grads) -> None:
    """Of every tensor, to 1e-4 of its largest number."""
    compared = 0
    for name, got in on_disk(case, model, ours).items():
        want = of_name(name, grads)
        compared += 1
        if model.config.moe.has_constant_weights and name.endswith("gate.weight"):
            assert max(np.abs(got).max(), np.abs(want).max()) < 1e-5  # 0 but for rounding
            continue
        size = max(np.abs(want).max(), 1e-3)
        np.testing.assert_allclose(got / size, want / size, atol=1e-4, rtol=0, err_msg=name)
    kind = model.hf["model_type"]
    names = [n for n in hf_models.shapes(case) if not hf_models.is_left_out(n, kind)]
    assert compared == sum(not hf_models.is_selection_bias(name) for name in names)


def check_routing(case, model, routed, chosen, real_BN) -> None:
    """The same experts for each real token in each layer, and the same auxiliary loss, where the
    family has the one that moejax has (of sigmoids transformers takes another softmax).
    """
    want = hf_models.golden(case)["loss"]
    if not np.isnan(want) and model.config.moe.balance.loss_weight:
        stats = balance.sum_sequences(routed.stats)
        np.testing.assert_allclose(balance.pooled_balance_loss(stats)[0], want, rtol=1e-5)
    chosen_LTE = np.asarray(routed.chosen_LBNE)[:, real_BN]
    for ours_TE, theirs_TK in zip(chosen_LTE, chosen, strict=True):
        want_TE = np.zeros_like(ours_TE)
        theirs_TK = theirs_TK.reshape(real_BN.size, -1)[real_BN.ravel()]
        np.put_along_axis(want_TE, theirs_TK, True, axis=1)
        np.testing.assert_array_equal(ours_TE, want_TE)


def on_disk(case, model, tree) -> dict[str, np.ndarray]:
    """A tree like our parameters, under the names of their tensors."""
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
    name = name if name in grads else hf_models.in_transformers(name)
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


@pytest.mark.parametrize("case", list(hf_models.CASES))
def test_an_export_has_every_byte_and_no_missing_or_unexpected_keys(case, tmp_path):
    """Also one whose config.json was written from our settings alone, which transformers reads. A
    model without a part that its family needs is one of another family.
    """
    model = moejax.hf.load(hf_models.write(tmp_path / "in", case))
    want, own = hf_models.golden(case)["logits_BNV"], model.hf["model_type"]
    tensors = hf_models.tensors(case).items()
    given = {name: x.tobytes() for name, x in tensors if not hf_models.is_left_out(name, own)}
    kind = None if any(part.needed for part in FAMILIES[own].left_out) else own
    for number, hf in enumerate((model.hf, None)):
        out = tmp_path / str(number)
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
