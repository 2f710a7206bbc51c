"""What lies on disk is what was written: one changed bit of a checkpoint is noticed, wherever."""

import json
import warnings
from pathlib import Path

import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.commands.main import run
from moejax.config import ConfigError, DistributedConfig, MeshConfig
from moejax.config.errors import RunError, UserError
from moejax.inference.opening import open_model
from moejax.runs.checkpoint import Checkpoints, read_parts
from moejax.runs.checksums import FILE, check_files, find_damage, write_checksums
from moejax.runtime.device_mesh import make_mesh
from moejax.runtime.processes import Processes

STATE = {"w_DV": jnp.arange(4096.0).reshape(64, 64) / 7, "b_V": jnp.ones(3)}


def like(state):
    def shape(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    return jax.tree.map(shape, state)


@pytest.fixture
def saved(tmp_path) -> Path:
    """Checkpoints of two steps, the second of another state."""
    with Processes(DistributedConfig()) as processes:
        checkpoints = Checkpoints(tmp_path / "checkpoints", 2, processes, "loss")
        for step in (1, 2):
            state = jax.tree.map(lambda x, step=step: x * step, STATE)
            checkpoints.save(step, state, {"step": step}, 0.5)
        checkpoints.close()
    return tmp_path / "checkpoints"


def restore(directory: Path) -> tuple[int, dict, dict]:
    with Processes(DistributedConfig()) as processes:
        checkpoints = Checkpoints(directory, 2, processes, "loss")
        found = checkpoints.restore(like(STATE))
        checkpoints.close()
    assert found is not None
    return found


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


def append_a_byte(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def test_a_checkpoint_as_it_was_written_is_restored(saved):
    """Its checksums are there from the first moment, and name every file."""
    names = json.loads((saved / "2" / FILE).read_text())["files"]
    there = {p.relative_to(saved / "2").as_posix() for p in (saved / "2").rglob("*") if p.is_file()}
    assert any(name.startswith("state/ocdbt.process_0/d/") for name in names)
    assert there - set(names) == {FILE, "_CHECKPOINT_METADATA", "commit_success.txt"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step, state, extra = restore(saved)
    assert (step, extra) == (2, {"step": 2})
    np.testing.assert_array_equal(state["w_DV"], 2 * STATE["w_DV"])


@pytest.mark.parametrize("harm", [flip_a_bit, append_a_byte, cut, Path.unlink])
def test_every_file_of_a_checkpoint_is_watched(saved, harm):
    """Each in turn; the one that is harmed is named."""
    for name in json.loads((saved / "2" / FILE).read_text())["files"]:
        file = saved / "2" / name
        content = file.read_bytes()
        harm(file) if content else append_a_byte(file)
        assert str(find_damage(saved / "2")).startswith(name)
        with pytest.raises(RunError, match="is missing|is not what was written"):
            check_files(saved / "2")
        file.write_bytes(content)
    assert find_damage(saved / "2") is None


def test_a_flipped_bit_of_a_parameter_moves_the_checkpoint_aside(saved):
    data = max((saved / "2" / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    flip_a_bit(data)
    with pytest.warns(UserWarning, match="checkpoint 2 cannot be read .*is not what was written"):
        step, state, _ = restore(saved)
    assert step == 1
    np.testing.assert_array_equal(state["w_DV"], STATE["w_DV"])
    assert (saved.parent / "damaged_checkpoints" / "2").is_dir()


def test_a_model_that_is_opened_is_looked_at_too(saved):
    flip_a_bit(max((saved / "2" / "state").rglob("d/*"), key=lambda p: p.stat().st_size))
    with pytest.warns(UserWarning, match="checkpoint 2 cannot be read"):
        step, parts, _ = read_parts(saved, like(STATE))
    assert step == 1
    with (
        pytest.warns(UserWarning, match="checkpoint 2 cannot be read"),
        pytest.raises(RunError, match="no checkpoint in .* can be read: .*its checksum differs"),
    ):
        read_parts(saved, like(STATE), step=2)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": {"a": [1]}}'])
def test_checksums_that_are_damaged_say_so(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    assert find_damage(tmp_path) == f"{FILE} itself is damaged"


def test_checkpoints_from_before_there_were_checksums_are_read(saved):
    (saved / "2" / FILE).unlink()
    assert restore(saved)[0] == 2


def test_several_processes_share_the_work(tmp_path):
    """Together they find what one finds alone, and each file is looked at once."""
    for i in range(5):
        (tmp_path / f"{i}").write_bytes(b"x" * i)
    write_checksums(tmp_path)
    flip_a_bit(tmp_path / "3")
    found = [find_damage(tmp_path, part, 2) for part in range(2)]
    assert [one for one in found if one] == [find_damage(tmp_path)]


def check(path: Path, capsys, *flags: str) -> tuple[int, str]:
    """The exit code of the command, and what it prints."""
    try:
        run(["check", str(path), *flags])
    except SystemExit as stopped:
        return stopped.code, capsys.readouterr().out
    return 0, capsys.readouterr().out


def test_the_command_says_of_each_checkpoint_what_it_found(saved, capsys):
    counts = {step: len(json.loads((saved / step / FILE).read_text())["files"]) for step in "12"}
    code, out = check(saved.parent, capsys)
    assert (code, out.splitlines()) == (
        0,
        [f"checkpoints/{step}  as written: {count} files" for step, count in counts.items()],
    )
    (saved / "1" / FILE).unlink()
    flip_a_bit(saved / "2" / "state" / "_METADATA")
    code, out = check(saved.parent, capsys, "--json")
    assert code == 1
    assert json.loads(out) == {
        "checkpoints/1": "not known: it was written without checksums",
        "checkpoints/2": "damaged: state/_METADATA is not what was written: its checksum differs",
    }


def test_a_directory_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no checkpoint: give the directory of a run"):
        run(["check", str(tmp_path)])


def test_an_import_has_checksums_of_its_settings_and_tokenizer_too(tmp_path, capsys):
    """A changed setting is named, and used: somebody may have meant it."""
    hf_models.write(tmp_path / "released", "mixtral")
    run(["import", str(tmp_path / "released"), str(tmp_path / "here")])
    capsys.readouterr()
    assert check(tmp_path / "here", capsys)[0] == 0
    settings = tmp_path / "here" / "config.json"
    settings.write_text(
        settings.read_text().replace('"norm_epsilon": 1e-05', '"norm_epsilon": 3e-05')
    )
    code, out = check(tmp_path / "here", capsys)
    assert code == 1 and ".      damaged: config.json is not what was written" in out
    mesh = make_mesh(MeshConfig())
    with pytest.warns(UserWarning, match="here: config.json is not what was written"):
        open_model(tmp_path / "here", mesh=mesh, layout=MeshConfig())
    (tmp_path / "here" / "huggingface.json").unlink()
    with (
        pytest.warns(UserWarning, match="here: config.json is not what was written"),
        pytest.raises(UserError, match="huggingface.json is missing, which `moejax import` wrote"),
    ):
        open_model(tmp_path / "here", mesh=mesh, layout=MeshConfig())
