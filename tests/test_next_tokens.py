"""Multi-token prediction: modules above the last layer that look further ahead."""

import json
import re

import hf_models
import jax
import numpy as np
import pytest
from next_token_oracle import DeepSeek
from safetensors.numpy import load_file, save_file

import moejax.hf
from moejax.config import Config, DataConfig, changed
from moejax.config.errors import UserError
from moejax.hf.configs import read_config, write_config
from moejax.models.decoder import DecoderLM
from moejax.train.forward import batch_sums
from moejax.train.gradients import gradients

CASE, LAYERS, MODULES = "deepseek_v3", 2, 2
HF = hf_models.CASES[CASE] | {"num_hidden_layers": LAYERS, "num_nextn_predict_layers": MODULES}
D, V = HF["hidden_size"], HF["vocab_size"]
OWN = {"enorm": [D], "hnorm": [D], "eh_proj": [D, 2 * D], "shared_head.norm": [D]}
COPIES = {"embed_tokens": "model.embed_tokens.weight", "shared_head.head": "lm_head.weight"}
WEIGHT = 0.3


def make_tensors(modules: int = MODULES) -> dict[str, np.ndarray]:
    """A DeepSeek-V3 with so many layers that look further ahead, under the released names."""
    shapes = {
        name: shape
        for name, shape in hf_models.shapes(CASE).items()
        if not (layer := re.search(r"layers\.(\d)\.", name)) or int(layer[1]) < LAYERS
    }
    of_last = {n: shape for n, shape in shapes.items() if f"layers.{LAYERS - 1}." in n}
    for layer in range(LAYERS, LAYERS + modules):
        at = f"model.layers.{layer}"
        shapes |= {n.replace(f"model.layers.{LAYERS - 1}", at): s for n, s in of_last.items()}
        shapes |= {f"{at}.{name}.weight": shape for name, shape in OWN.items()}
    tensors = {name: hf_models.values(name, shape) for name, shape in shapes.items()}
    tensors["lm_head.weight"][4:] *= 0.05  # so that some drafts are accepted
    for layer in range(LAYERS, LAYERS + modules):
        copies = {f"model.layers.{layer}.{n}.weight": tensors[of] for n, of in COPIES.items()}
        tensors |= copies
    return tensors


def write(directory, tensors, **changes):
    """A checkpoint of these tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(HF | changes))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("checkpoint"), make_tensors())


@pytest.fixture(scope="module")
def model(checkpoint):
    return moejax.hf.load(checkpoint)


LENGTHS = ((7, 5), (10,))
"""Tokens of the documents of each row, the last of which is a target alone."""


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(3)
    return [[rng.integers(3, V, length) for length in row] for row in LENGTHS]


@pytest.fixture(scope="module")
def batch(documents):
    """The documents, packed: a row of two, and one with padding at its end."""
    names = ("inputs", "targets", "segments", "positions", "bytes")
    found = {name: np.zeros((len(LENGTHS), 10), np.int32) for name in names}
    for row, some in enumerate(documents):
        begin = 0
        for number, document in enumerate(some, start=1):
            at = (row, slice(begin, begin + len(document) - 1))
            found["inputs"][at], found["targets"][at] = document[:-1], document[1:]
            found["segments"][at], found["bytes"][at] = number, 1
            found["positions"][at] = np.arange(len(document) - 1)
            begin += len(document) - 1
    return found


@pytest.fixture(scope="module")
def truth(documents):
    return DeepSeek(HF, make_tensors()), sum(documents, [])


def settings(config, **changes) -> Config:
    run = Config(model=config, data=DataConfig(sequence_length=10, batch_size=2, eval_batch_size=2))
    return changed(run, {"optim.next_token_weight": WEIGHT} | changes)


def test_losses_and_acceptance_are_those_of_the_released_formulas(model, batch, truth):
    """In float64, with packed documents and padding: the two modules, one after the other."""
    oracle, documents = truth
    run = jax.jit(lambda params, batch: batch_sums(model.model, params, model.bias_LE, batch, None))
    sums, routed, _ = run(model.params, batch)
    nats, targets, accepted = oracle.sums(documents)
    np.testing.assert_allclose(sums.nats, nats[0], rtol=1e-5)
    np.testing.assert_allclose(sums.ahead.nats_P, nats[1:], rtol=1e-5)
    np.testing.assert_array_equal(sums.ahead.targets_P, targets[1:])
    np.testing.assert_array_equal(sums.ahead.accepted_P, accepted[1:])
    assert 0 < accepted[1:].sum() < targets[1:].sum()
    # Where a document has no token so far ahead, the module routes nothing.
    np.testing.assert_array_equal(routed.stats.tokens_B.sum(1), targets)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"optim.accumulate": 2, "model.remat": "layer"}, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_the_released_formulas(model, batch, truth, tmp_path, changes):
    """Along a random direction in tensors of every kind."""
    oracle, documents = truth
    # A loop compiles in half the time.
    config = settings(model.config, **{"model.unroll": False} | changes)
    decoder = DecoderLM(config.model, V)
    run = jax.jit(
        lambda params, batch: gradients(
            decoder, params, model.bias_LE, batch, jax.random.key(0), config
        )[0]
    )
    moejax.hf.save(tmp_path / "new", model.config, run(model.params, batch), model.bias_LE)
    gradient = load_file(tmp_path / "new" / "model.safetensors")
    rng = np.random.default_rng(0)
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
    names += ["model.layers.1.mlp.gate.weight", "model.layers.0.self_attn.o_proj.weight"]
    for layer in range(LAYERS, LAYERS + MODULES):
        of = [*OWN, "mlp.gate", "self_attn.q_b_proj", "mlp.shared_experts.up_proj"]
        names += [f"model.layers.{layer}.{name}.weight" for name in of]
    for name in names:
        tensor = oracle.w[name]
        direction, ends = rng.normal(size=tensor.shape), []
        for step in (1e-5, -1e-5):
            oracle.w[name] = tensor + step * direction
            ends.append(oracle.loss(documents, WEIGHT))
        oracle.w[name] = tensor
        got, want = np.vdot(gradient[name], direction), (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6, err_msg=name)


# Files.


def refused(directory, **options) -> str:
    """The words of the error."""
    with pytest.raises(UserError) as caught:
        moejax.hf.load(directory, **options)
    return str(caught.value)


def test_what_was_read_is_written_to_the_byte(model, checkpoint, tmp_path):
    family = moejax.hf.save(
        tmp_path / "new", model.config, model.params, model.bias_LE, hf=model.hf
    )
    there, new = (load_file(at / "model.safetensors") for at in (checkpoint, tmp_path / "new"))
    assert family == "deepseek_v3" and there.keys() == new.keys()
    for name, tensor in there.items():
        assert tensor.tobytes() == new[name].tobytes(), name
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert written["num_nextn_predict_layers"] == MODULES


def test_layers_that_look_ahead_are_left_out_on_request(checkpoint, model, tmp_path, capsys):
    left = moejax.hf.load(checkpoint, next_tokens=False)
    assert "left out: layers 2 to 3, which predict a second token" in capsys.readouterr().err
    assert left.config.next_tokens == 0 and "next_tokens" not in left.params
    assert left.bias_LE.shape[0] == 1 and model.bias_LE.shape[0] == 3
    moejax.hf.save(
        tmp_path / "new", model.config, model.params, model.bias_LE, hf=model.hf, next_tokens=False
    )
    capsys.readouterr()
    again = moejax.hf.load(tmp_path / "new")
    assert capsys.readouterr().err == "" and again.hf["num_nextn_predict_layers"] == 0
    jax.tree.map(np.testing.assert_array_equal, again.params, left.params)


def without(name):
    return lambda tensors: tensors.pop(name)


def changed_tensor(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


AT = "model.layers.2."
WRONG = {
    "missing": (without(f"{AT}hnorm.weight"), {}, f"missing: {AT}hnorm.weight"),
    "one layer of two": (
        lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith("model.layers.3.")],
        {},
        "missing: model.layers.3.enorm.weight",
    ),
    "unknown": (
        lambda tensors: tensors.update({f"{AT}more.weight": np.zeros(3, np.float32)}),
        {},
        f"unknown: {AT}more.weight",
    ),
    "misshapen": (
        changed_tensor(f"{AT}eh_proj.weight", lambda x: np.ascontiguousarray(x.T)),
        {},
        f"misshapen: {AT}eh_proj.weight [64, 32] instead of [32, 64]",
    ),
    "another embedding": (
        changed_tensor(f"{AT}embed_tokens.weight", lambda x: x + 1),
        {},
        f"{AT}embed_tokens.weight is not model.embed_tokens.weight: layers that predict further",
    ),
    "another head": (
        changed_tensor("model.layers.3.shared_head.head.weight", lambda x: x[:-1]),
        {},
        "model.layers.3.shared_head.head.weight is not lm_head.weight",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_damaged_layer_that_looks_ahead_is_refused_with_what_helps(kind, tmp_path):
    damage, changes, message = WRONG[kind]
    tensors = make_tensors()
    damage(tensors)
    here = write(tmp_path, tensors, **changes)
    said = refused(here)
    assert message in said and "--next-tokens False leaves out the layers that predict" in said
    if kind == "misshapen":  # and so it is
        assert moejax.hf.load(here, next_tokens=False).config.next_tokens == 0


def test_files_without_the_layers_and_without_copies_are_read(tmp_path, checkpoint):
    """Many files lack the layers of which their config.json speaks; some have no copies."""
    here = write(tmp_path / "none", make_tensors(modules=0))
    assert moejax.hf.load(here).config.next_tokens == 0
    tensors = {n: x for n, x in make_tensors().items() if not n.endswith(tuple(COPIES_ON_DISK))}
    model = moejax.hf.load(write(tmp_path / "no_copies", tensors))
    assert model.config.next_tokens == MODULES


COPIES_ON_DISK = ("2.embed_tokens.weight", "3.shared_head.head.weight")


def test_the_number_has_two_names():
    both = {"num_nextn_predict_layers": 1, "num_mtp_layers": 1}
    assert read_config(HF | both).next_tokens == 1
    with pytest.raises(UserError, match="num_mtp_layers is 2: they are two names of one number"):
        read_config(HF | both | {"num_mtp_layers": 2})
    model = read_config(HF | both)
    zero = write_config(changed(model, {"next_tokens": 0}), HF | both)
    assert (zero["num_nextn_predict_layers"], zero["num_mtp_layers"]) == (0, 0)


def test_a_family_without_such_layers_says_how_to_write_it():
    mixtral = read_config(hf_models.CASES["mixtral"])
    with pytest.raises(UserError, match="--model.next-tokens 1") as caught:
        write_config(changed(mixtral, {"next_tokens": 1}))
    assert "--next-tokens False leaves out what predicts further tokens" in str(caught.value)
