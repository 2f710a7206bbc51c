"""Arrays of a checkpoint, read and written part by part: the same values, and little memory."""

import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moejax.config.mesh import MeshConfig
from moejax.runs import stored_arrays
from moejax.runs.stored_arrays import list_arrays, read_tree, read_types, save_in_parts
from moejax.runtime.device_mesh import make_mesh

TREE = {
    "stack": {"w_LEDF": np.arange(3 * 4 * 8 * 16, dtype=np.float32).reshape(3, 4, 8, 16)},
    "w_VD": np.arange(40, dtype=np.float32).reshape(10, 4),
    "scale": np.float32(2.5),
}


def save(tree, directory):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(directory, args=save_in_parts(jax.tree.map(jax.numpy.asarray, tree)))


def shapes(tree, dtype, sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding), tree)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of a few numbers, so that small arrays are cut, too."""
    monkeypatch.setattr(stored_arrays, "PART_BYTES", 256)
    monkeypatch.setattr(stored_arrays, "SMALLEST_ROW", 128)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "spec", [(), (None, "expert"), ("data",)], ids=["everywhere", "second", "first"]
)
def test_parts_are_put_together_as_they_were(tmp_path, small_parts, dtype, spec):
    """On devices that hold all, a part of each layer, or some entries of the first dimension."""
    tree = {"w_LEDF": np.arange(4 * 4 * 8 * 16, dtype=np.float32).reshape(4, 4, 8, 16)}
    save(tree, tmp_path / "saved")
    mesh = make_mesh(MeshConfig(data=2, expert=4))
    like = shapes(tree, dtype, NamedSharding(mesh, PartitionSpec(*spec)))
    read = read_tree(tmp_path / "saved", like)["w_LEDF"]
    np.testing.assert_array_equal(read, tree["w_LEDF"].astype(dtype))
    assert read.dtype == dtype and read.sharding.spec == PartitionSpec(*spec)


def test_what_all_devices_hold_one_of_them_saves(tmp_path):
    """So that no program has to cut it into slices. What is spread, or large, stays as it is."""
    mesh = make_mesh(MeshConfig(data=2, expert=4))
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    specs = {"everywhere": (), "spread": ("data",)}
    tree = {k: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*s))) for k, s in specs.items()}
    given = save_in_parts(tree)
    assert {k: len(v.sharding.device_set) for k, v in given.item.items()} == {
        "everywhere": 1,
        "spread": 8,
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "saved", args=given)
    for read in read_tree(
        tmp_path / "saved", shapes(tree, "float32", tree["spread"].sharding)
    ).values():
        np.testing.assert_array_equal(read, x)


def test_all_shapes_are_read(tmp_path, small_parts):
    """Scalars, and arrays whose last part is shorter."""
    save(TREE, tmp_path / "saved")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    read = read_tree(tmp_path / "saved", shapes(TREE, "float32", sharding))
    jax.tree.map(np.testing.assert_array_equal, read, TREE)
    assert set(list_arrays(tmp_path / "saved")) == {
        ("stack", "w_LEDF"),
        ("w_VD",),
        ("scale",),
    }
    assert set(read_types(tmp_path / "saved").values()) == {np.dtype("float32")}


@pytest.mark.parametrize("way", ["{}/../saved", "./{}", "{}//"])
def test_any_way_to_the_directory_is_taken(tmp_path, monkeypatch, way):
    save(TREE, tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    read = read_tree(Path(way.format("saved")), shapes(TREE, "float32", sharding))
    jax.tree.map(np.testing.assert_array_equal, read, TREE)


def test_a_layer_of_a_stack_can_be_read_alone(tmp_path, small_parts):
    save(TREE, tmp_path / "saved")
    (store,) = stored_arrays.open_arrays(tmp_path / "saved", [("stack", "w_LEDF")]).values()
    assert store.chunk_layout.read_chunk.shape[0] == 1


@pytest.mark.parametrize(
    "change, says",
    [
        ({"other": np.zeros(3, np.float32)}, "other is missing"),
        ({"w_VD": np.zeros((4, 10), np.float32)}, r"w_VD is \[10, 4\] instead of \[4, 10\]"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, change, says):
    save(TREE, tmp_path / "saved")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(ValueError, match=says):
        read_tree(tmp_path / "saved", shapes(TREE | change, "float32", sharding))


MEASURE = """
    import sys
    from pathlib import Path

    import jax
    import jax.numpy as jnp
    import orbax.checkpoint as ocp
    from moejax.runs import stored_arrays

    stored_arrays.PART_BYTES, stored_arrays.FILE_BYTES = 32 << 20, 64 << 20

    def read_status(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def begin():
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
        return read_status("VmRSS")

    what, place = sys.argv[1], Path(sys.argv[2])
    draw = jax.jit(lambda: jax.random.normal(jax.random.key(0), (16, 2048, 4096)))
    shape = jax.eval_shape(draw)
    like = jax.ShapeDtypeStruct(
        shape.shape, shape.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    size = like.size * 4
    if what == "save":
        tree = {"w_LDF": jax.block_until_ready(draw())}
        before = begin()
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(place, args=stored_arrays.save_in_parts(tree))
        more = read_status("VmHWM") - before
    else:
        jnp.zeros(3).sum().block_until_ready()
        before = begin()
        tree = stored_arrays.read_tree(place, {"w_LDF": like})
        more = read_status("VmHWM") - before - size
    print(more / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_saving_and_reading_need_little_memory_beside_the_arrays(tmp_path):
    """537 MB in parts of 32 MB. Restored as a whole they take as much again, and what is saved in
    one file waits in memory for its end.
    """
    for what, most in (("save", 0.85), ("read", 0.6)):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(MEASURE), what, str(tmp_path / "saved")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert float(done.stdout) < most, what
