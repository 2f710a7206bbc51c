"""Models that are quantised as they are read, and those that are kept so."""

import json
from pathlib import Path

import hf_models
import jax
import numpy as np
import pytest

from moejax import hf
from moejax.commands.main import run
from moejax.config import ConfigError, MeshConfig
from moejax.config.errors import UserError
from moejax.hf import arrays
from moejax.inference.open_model import OpenModel
from moejax.inference.opening import open_model
from moejax.moe.quantise_params import (
    Weights,
    check_spread,
    quantise_params,
    quantise_shapes,
)
from moejax.moe.quantised import Quantised
from moejax.runs import stored_arrays
from moejax.runtime import device_mesh, partition, room
from moejax.runtime.partition import set_shardings

ONE = MeshConfig(data=1)
INT4 = Weights(kind="int4")


def open_one(path: Path, weights: Weights | None = None) -> OpenModel:
    mesh = device_mesh.make_mesh(ONE, jax.devices()[:1])
    return open_model(path, mesh=mesh, layout=ONE, weights=weights)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint, what `moejax import` makes of it, and what `moejax quantise` does."""
    here = tmp_path_factory.mktemp("quantised")
    made = {name: here / name for name in ("checkpoint", "imported", "kept")}
    hf_models.write(made["checkpoint"], "olmoe")
    run(["import", str(made["checkpoint"]), str(made["imported"])])
    run(["quantise", str(made["imported"]), str(made["kept"]), "--weights", "int4"])
    return made


def assert_equal(found: dict, wanted: dict) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["checkpoint", "imported"])
def test_what_is_read_in_parts_is_quantised_like_the_whole(
    place: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts one by one, rows of the embedding and columns of the head some at a time."""
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 256)
    monkeypatch.setattr(stored_arrays, "PART_BYTES", 256)
    wanted = quantise_params(open_one(places[place]).params, INT4)
    found = open_one(places[place], INT4)
    assert_equal(found.params, wanted)
    kinds = {
        w.kind
        for w in jax.tree.leaves(wanted, is_leaf=lambda w: isinstance(w, Quantised))
        if isinstance(w, Quantised)
    }
    assert kinds == {"int4", "int8"}  # the embedding has a byte a number


def test_a_quantised_model_is_kept(
    places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what `--weights` gives, opens in either way, and `moejax check` says what it is."""
    wanted = open_one(places["imported"], INT4)
    for weights in (None, INT4):
        found = open_one(places["kept"], weights)
        assert_equal(found.params, wanted.params)
    assert (found.context, found.ends, found.vocab_size) == (
        wanted.context,
        wanted.ends,
        wanted.vocab_size,
    )
    assert "int4" in found.description and "bits a parameter" in found.description
    capsys.readouterr()
    run(["check", str(places["kept"]), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["weights"] == "quantised: int4" and said["quantised"].startswith("as written")


REFUSED = [
    # A command with the model that is kept as KEPT, and words of the message.
    (["quantise", "KEPT", "NEW"], "quantising needs the weights themselves"),
    (["export", "KEPT", "NEW"], "exporting needs the weights themselves"),
    (["import", "KEPT", "NEW"], "reading it as a checkpoint needs the weights themselves"),
    (["merge", "KEPT", "NEW"], "merging needs the weights themselves"),
    (["merge", "ADAPTERS", "NEW", "--base", "KEPT"], "merging needs the weights themselves"),
    (["prune", "KEPT", "NEW"], "pruning needs the weights themselves"),
    (["export", "CHECKPOINT", "NEW"], "NEW` makes such a model of it"),
    (["prune", "IMPORTED", "NEW", "--weights", "int8"], "pruning needs the weights themselves"),
    (["upcycle", "KEPT", "NEW"], "reading it as a checkpoint needs the weights themselves"),
    (["train", "--config", "configs/quickstart.py", "--run.init-from", "KEPT"],
     "training from it needs the weights themselves"),
    (["generate", "KEPT", "--prompt", "a", "--weights", "int8"], "is quantised already (int4)"),
    (["generate", "KEPT", "--prompt", "a", "--step", "2"], "has one state only"),
    (["quantise", "IMPORTED", "NEW", "--group", "5"], "groups of 5"),
    (["quantise", "IMPORTED", "NEW", "--weights", "int8", "--group", "96"], "Leave --group out"),
    (["generate", "IMPORTED", "--prompt", "a", "--group", "8"], "--weights int8, int4 or fp8"),
    (["eval", "IMPORTED", "--weights", "int8", "--mesh.fsdp", "True"], "--mesh.fsdp gathers"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"), REFUSED, ids=[words[0] + str(n) for n, (words, _) in enumerate(REFUSED)]
)
def test_what_cannot_be_is_refused(
    words: list[str], message: str, places: dict[str, Path], tmp_path: Path
) -> None:
    names = {"KEPT": places["kept"], "IMPORTED": places["imported"], "NEW": tmp_path / "new"}
    names |= {"ADAPTERS": tmp_path, "CHECKPOINT": places["checkpoint"]}
    (tmp_path / "adapter_config.json").write_text("{}")
    for name, path in names.items():
        words = [word.replace(name, str(path)) for word in words]
    with pytest.raises(UserError) as caught:
        run(words)
    assert message in str(caught.value) and caught.value.exit_code == 2
    assert not (tmp_path / "new").exists()


def test_quantised_parameters_are_not_written_as_weights(
    places: dict[str, Path], tmp_path: Path
) -> None:
    model = open_one(places["imported"], INT4)
    with pytest.raises(ConfigError, match="its weights are quantised: open the model without"):
        hf.save(tmp_path / "new", model.config, model.params)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["checkpoint", "imported", "kept"])
def test_too_little_memory_is_said_before_anything_is_read(
    place: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "read_host_memory", lambda: 8000.0)
    for module in (arrays, stored_arrays):
        monkeypatch.setattr(module, "place_block", None)
        monkeypatch.setattr(module, "place", None)
    with pytest.raises(ConfigError, match="takes at least .*B, but this machine has 8kB"):
        open_one(places[place], None if place == "kept" else INT4)


@pytest.mark.parametrize(
    ("kind", "group", "words"),
    [
        ("int8", 8, "--mesh.model 2 cannot spread 3 groups of 8 numbers: give --group channel"),
        ("int8", 12, None),
        ("int8", "channel", None),
        ("int4", "channel", None),
    ],
)
def test_groups_are_whole_on_each_device(kind: str, group: int | str, words: str | None) -> None:
    """Of a bank whose experts sum over 24 numbers, 12 on each of two devices."""
    layout = MeshConfig(data=4, model=2)
    like = {"w_down_EFD": jax.ShapeDtypeStruct((4, 24, 16), "float32")}
    like = quantise_shapes(like, Weights(kind=kind, group=group))
    shardings = partition.tree_shardings(device_mesh.make_mesh(layout), like)
    like = set_shardings(like, shardings)
    if words is None:
        check_spread(like, layout)
        bank = like["w_down_EFD"]
        codes, scales = (x.sharding.shard_shape(x.shape) for x in (bank.codes, bank.scales))
        assert codes[1] * (2 if kind == "int4" else 1) == 12 and scales[1] == 1
    else:
        with pytest.raises(ConfigError, match=words):
            check_spread(like, layout)
