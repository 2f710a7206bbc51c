"""Multi-token prediction: modules above the last layer that look further ahead."""

import json
import re

import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from next_token_oracle import DeepSeek
from safetensors.numpy import load_file, save_file
from test_hf_counts import DEEPSEEK_V3

import moejax.hf
from moejax.commands.main import run
from moejax.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    changed,
)
from moejax.config.errors import UserError
from moejax.data.tokenizer import ByteTokenizer
from moejax.hf.configs import read_config, write_config
from moejax.hf.reading import array_shapes, survey
from moejax.hf.upcycle import upcycle, upcycle_config
from moejax.inference.generation import Generator
from moejax.models.chunk_loss import Aim
from moejax.models.counts import parameters
from moejax.models.decoder import DecoderLM
from moejax.models.head import Head
from moejax.models.head_loss import sum_losses
from moejax.models.layer_runs import locate_layers
from moejax.models.next_tokens import find_real, shift
from moejax.moe.lying import lie_quantised
from moejax.moe.quantise_params import Weights, quantise_params
from moejax.runtime import device_mesh
from moejax.train.forward import batch_sums, count_targets, list_tokens, sum_ahead
from moejax.train.gradients import gradients
from moejax.train.objective import weigh_ahead_loss, weigh_modules
from moejax.train.reports import AheadSums
from moejax.train.training import train

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


@pytest.mark.slow
def test_gradients_are_those_of_the_released_formulas(model, batch, truth, tmp_path):
    """Along a random direction in tensors of every kind, in micro-batches whose layers are computed
    again.
    """
    oracle, documents = truth
    changes = {"optim.accumulate": 2, "model.remat": "layer", "model.unroll": False}
    config = settings(model.config, **changes)
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


# By hand.


def test_what_lies_ahead_ends_with_the_document():
    """Two documents of three tokens and of two, and padding."""
    tokens_BN = jnp.array([[10, 11, 12, 20, 21, 0]])
    segments_BN = jnp.array([[1, 1, 1, 2, 2, 0]])
    assert shift(tokens_BN).tolist() == [[11, 12, 20, 21, 0, 0]]
    assert shift(tokens_BN, 7).tolist() == [[0] * 6]
    assert find_real(segments_BN, 1).tolist() == [[True, True, False, True, False, False]]
    assert find_real(segments_BN, 2).tolist() == [[True, False, False, False, False, False]]
    assert not find_real(segments_BN, 3).any()


def test_a_story_of_two_drafts():
    """Three tokens and what they are followed by: 1, 0, 1. The model says 1, 1, 0; the module, of
    the token after that, 1, 0: its first draft is what the model says later, its second is not,
    though the model is wrong there as well. Both draw from two tokens with odds of 3 to 1.
    """
    odds = jnp.log(jnp.array([3.0, 1.0]))
    says = lambda *best: jnp.stack([odds if b == 0 else odds[::-1] for b in best])[None]  # noqa: E731
    batch = {"targets": jnp.array([[1, 0, 1]]), "segments": jnp.ones((1, 3), jnp.int32)}
    states = [says(1, 1, 0), says(1, 1, 0)]  # which are the logits

    def add_up(states: list[jax.Array], best: bool) -> AheadSums | None:
        tokens = list_tokens(states, batch)
        found = sum_losses(Head(jnp.eye(2)), tokens, jnp.ones(len(states)), Aim(), best)
        return sum_ahead(found, tokens)

    sums = add_up(states, True)
    assert sums.targets_P.tolist() == [2] and sums.accepted_P.tolist() == [1]
    # Wrong of the target 0, right of the target 1.
    np.testing.assert_allclose(sums.nats_P, [np.log(4) + np.log(4 / 3)], rtol=1e-6)
    assert add_up(states, False).accepted_P is None
    assert add_up(states[:1], True) is None


def test_the_loss_is_the_mean_over_modules_of_their_mean_over_targets():
    """Of the whole batch, to which each part adds its share; a module may have no target."""
    parts_2Q = jnp.array([[6.0, 3.0, 2.0], [2.0, 1.0, 0.0]])
    targets_Q = jnp.array([8.0, 4.0, 1.0])
    assert (parts_2Q * weigh_modules(targets_Q, 0.0)).sum() == 1.0
    # 8 / 8 and half of the mean of 4 / 4 and 2 / 1.
    assert (parts_2Q * weigh_modules(targets_Q, 0.5)).sum() == 1.75
    assert weigh_modules(jnp.array([8.0, 0.0]), 0.5).tolist() == [0.125, 0.5]
    assert weigh_modules(jnp.array([8.0]), 0.5).tolist() == [0.125]
    segments_BN = jnp.array([[1, 1, 1, 2, 2, 0]])
    assert count_targets({"segments": segments_BN}, 2).tolist() == [5, 3, 1]


def test_the_coefficient_may_change_in_the_last_third():
    optim = OptimConfig(next_token_weight=0.3)
    assert weigh_ahead_loss(optim, 29, 30) == 0.3
    optim = OptimConfig(next_token_weight=0.3, next_token_late_weight=0.1)
    found = [float(weigh_ahead_loss(optim, step, 30)) for step in (0, 19, 20, 29)]
    np.testing.assert_allclose(found, [0.3, 0.3, 0.1, 0.1], rtol=1e-6)


# The model.

SMALL = ModelConfig(
    num_layers=2,
    width=16,
    num_heads=2,
    vocab_size=11,
    unroll=False,
    next_tokens=1,
    moe=MoEConfig(num_experts=4, top_k=2, hidden_size=8, group_size=1),
)


def array_sizes(config) -> int:
    return sum(int(np.prod(shape)) for shape in array_shapes(config).values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"next_tokens": 3, "norm_place": "sandwich"},
        {"moe.every": 2},  # the last layer is routed
        {"moe.every": 2, "num_layers": 3},  # it is dense
        {"moe.every": 0, "tie_embeddings": True},
        {"moe.shared_experts": 1, "moe.shared_gate": True},
    ],
)
def test_the_block_is_as_the_last_layer_and_all_is_counted(changes):
    config = changed(SMALL, changes)
    assert sum(parameters(config, 11).values()) == array_sizes(config)
    assert config.routed_blocks[-1] == config.routed_layers[-1]
    shapes = array_shapes(config)
    last, _ = locate_layers(changed(config, {"next_tokens": 0}))[-1]
    of_last = {path[2:]: shape[1:] for path, shape in shapes.items() if path[:2] == last}
    block = {p[2:]: s[1:] for p, s in shapes.items() if p[:2] == ("next_tokens", "block")}
    assert block == of_last and block


def test_the_size_of_deepseek_v3_on_disk_is_that_of_its_card():
    """685 billion, with 14 billion of the module, which repeat the embedding and the head."""
    model = read_config(DEEPSEEK_V3)
    total, without = (
        sum(parameters(config, model.vocab_size).values())
        for config in (model, changed(model, {"next_tokens": 0}))
    )
    repeated = 2 * model.vocab_size * model.width
    assert round((total + repeated) / 1e9) in (684, 685)
    assert (total - without + repeated) / 1e9 == pytest.approx(14, abs=0.6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.next_tokens": -1}, "--model.next-tokens must be at least 0, not -1"),
        ({"model.next_tokens": 17}, "--model.next-tokens must be at most 16, not 17"),
        ({"model.next_tokens": 1.0}, "--model.next-tokens must be int, not 1.0"),
        (
            {"model.next_tokens": 4, "data.sequence_length": 4},
            "--model.next-tokens 4 looks beyond the end of --data.sequence-length 4",
        ),
        ({"model.kind": "vit", "model.next_tokens": 1}, "--model.next-tokens is for texts"),
        ({"optim.next_token_weight": -0.1}, "--optim.next-token-weight must be at least 0"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        changed(changed(Config(), {"model.moe.group_size": 1}), changes)


def test_upcycling_makes_experts_of_the_network_of_the_module_too():
    dense = changed(SMALL, {"moe.every": 0, "dense_hidden_size": 8})
    rng = np.random.default_rng(0)
    arrays = {
        path: rng.normal(size=shape).astype(np.float32)
        for path, shape in array_shapes(dense).items()
    }
    config = upcycle_config(dense, num_experts=4, top_k=2)
    made = flatten_dict(upcycle(dense, unflatten_dict(arrays), config))
    assert {path: x.shape for path, x in made.items()} == array_shapes(config)
    at = ("next_tokens", "block")
    for name, of in (("w_up_EDF", "w_up_DF"), ("w_down_EFD", "w_down_FD")):
        for expert in made[*at, "moe", name][0]:
            np.testing.assert_allclose(expert, arrays[*at, "feed_forward", of][0], rtol=1e-6)


@pytest.mark.slow
def test_quantised_parameters_are_read_where_they_lie(model, batch, truth):
    """They are no arrays."""
    oracle, documents = truth
    codes = quantise_params(model.params, Weights(kind="int8"))
    run = jax.jit(
        lambda codes: batch_sums(model.model, lie_quantised(codes), model.bias_LE, batch, None)[0]
    )
    np.testing.assert_allclose(run(codes).ahead.nats_P, oracle.sums(documents)[0][1:], rtol=0.02)


def test_generating_text_holds_no_module():
    """Nor its row of the selection bias."""
    config = changed(SMALL, {"vocab_size": 257, "moe.router": "deepseek_v3"})
    arrays = {path: jnp.zeros(shape) for path, shape in array_shapes(config).items()}
    bias_LE = arrays.pop(("bias_LE",))
    made = Generator(
        config,
        MeshConfig(),
        unflatten_dict(arrays),
        bias_LE,
        mesh=device_mesh.make_mesh(MeshConfig(), jax.devices()[:1]),
        tokenizer=ByteTokenizer(),
        ends=frozenset(),
    )
    params, kept_LE, _ = made._runner._weights
    assert params.keys() == {"embedding_VD", "final_norm", "layers_0", "w_head_DV"}
    assert bias_LE.shape == (3, 4) and kept_LE.shape == (2, 4)


@pytest.mark.slow
def test_a_run_learns_to_look_ahead_and_says_so(tiny, tmp_path, capsys):
    """Its loss falls, and it has a line; evaluations say how often drafts are accepted; and the
    router of the module is among the layers' in the files of load.
    """
    (tmp_path / "text").write_text("abcdefgh" * 200)
    config = changed(
        tiny,
        {"model.next_tokens": 1, "model.num_layers": 1, "data.source": "files"}
        | {"data.files": str(tmp_path / "text"), "optim.learning_rate": 0.02}
        | {"run.directory": str(tmp_path / "run"), "run.steps": 20, "run.eval_every": 20}
        | {"run.checkpoint_every": 20, "run.log_every": 5, "run.sample_tokens": 0},
    )
    train(config, name="run", command="train")
    assert "1 further token predicted" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["next_1_loss"] for line in lines if line["split"] == "train"]
    assert losses[-1] < losses[0] - 1
    assert not any("next_1_accepted" in line for line in lines if line["split"] == "train")
    (held_out,) = (line for line in lines if line["split"] == "validation")
    assert 0 <= held_out["next_1_accepted"] <= 1 and held_out["next_1_loss"] > 0
    load = np.load(sorted((tmp_path / "run" / "load").glob("*.npz"))[-1])
    assert load["layers"].tolist() == [0, 1] and load["asked_LE"].shape == (2, 4)
    assert load["asked_LE"][1].sum() < load["asked_LE"][0].sum()
    words = ["eval", str(tmp_path / "run"), "--batches", "1"]
    run([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    check_drafts(str(tmp_path / "run"), capsys)
    assert found["next_1_accepted"] == held_out["next_1_accepted"]
    assert found["next_1_loss"] == pytest.approx(held_out["next_1_loss"], rel=1e-5)


def check_drafts(directory: str, capsys) -> None:
    """Its text is the same with drafts by the module, or from the text, which are told of."""
    words = [
        "generate",
        directory,
        "--prompt",
        "abcdefghabc",
        "--tokens",
        "9",
        "--temperature",
        "0",
    ]
    run(words)
    plain = capsys.readouterr()
    assert "drafts" not in plain.err
    for way in ("mtp", "prompt"):
        run([*words, "--speculate", way])
        drafted = capsys.readouterr()
        assert drafted.out == plain.out
        told = r"; \d+ of \d+ drafts right \(\d+%\), \d\.\d\d tokens a call for each text"
        assert re.search(told, drafted.err)
    with pytest.raises(UserError, match="--drafts 2: each of this model's modules guesses one"):
        run([*words, "--speculate", "mtp", "--drafts", "2"])


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
    if kind != "unknown":  # and so it is
        assert survey(here, next_tokens=False).config.next_tokens == 0


def test_files_without_the_layers_and_without_copies_are_read(tmp_path, checkpoint):
    """Many files lack the layers of which their config.json speaks; some have no copies."""
    here = write(tmp_path / "none", make_tensors(modules=0))
    assert survey(here).config.next_tokens == 0
    tensors = {n: x for n, x in make_tensors().items() if not n.endswith(tuple(COPIES_ON_DISK))}
    found = survey(write(tmp_path / "no_copies", tensors))
    assert found.config.next_tokens == MODULES


COPIES_ON_DISK = ("2.embed_tokens.weight", "3.shared_head.head.weight")


def test_the_number_has_two_names():
    both = {"num_nextn_predict_layers": 1, "num_mtp_layers": 1}
    assert read_config(HF | both).next_tokens == 1
    with pytest.raises(UserError, match="num_mtp_layers is 2: they are two names of one number"):
        read_config(HF | both | {"num_mtp_layers": 2})
    model = read_config(HF | both)
    zero = write_config(changed(model, {"next_tokens": 0}), HF | both)
    assert (zero["num_nextn_predict_layers"], zero["num_mtp_layers"]) == (0, 0)


@pytest.mark.parametrize(
    "kind", ["deepseek_v3", "kimi_k2", "deepseek_v32", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa"]
)
def test_the_families_with_released_layers_of_these_names_keep_them(kind):
    hf = hf_models.sizes_of(kind) | {"model_type": kind, "num_nextn_predict_layers": 1}
    assert read_config(hf).next_tokens == 1
    assert read_config(hf | {"num_nextn_predict_layers": 0}).next_tokens == 0


def test_a_family_without_such_layers_says_how_to_write_it():
    mixtral = read_config(hf_models.CASES["mixtral"])
    with pytest.raises(UserError, match="--model.next-tokens 1") as caught:
        write_config(changed(mixtral, {"next_tokens": 1}))
    assert "`moejax export --next-tokens False` leaves out what" in str(caught.value)
