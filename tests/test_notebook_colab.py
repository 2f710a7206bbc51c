"""The Colab notebook: what its cells decide, what they do on Colab (a stub of it), and that the
step which they train compiles for TPUs. The cells are read from the file, so that nothing differs.
"""

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest
from packaging.requirements import Requirement

from moejax.commands.command_line import parse_config
from moejax.runtime import device_fit, device_mesh

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "notebooks/colab_tpu.ipynb").read_text(encoding="utf-8"))
CELLS = {
    cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"
}


def execute(name: str, namespace: dict) -> None:
    """Run a cell as it is."""
    exec(compile(CELLS[name], name, "exec"), namespace)


def definitions(*names: str) -> dict:
    """What cells import and define, and nothing that they do."""
    namespace = {}
    for name in names:
        tree = ast.parse(CELLS[name])
        kept = (ast.Import, ast.ImportFrom, ast.FunctionDef)
        tree.body = [
            node
            for node in tree.body
            if isinstance(node, kept)
            or (isinstance(node, ast.Assign) and node.targets[0].id.isupper())
        ]
        exec(compile(tree, name, "exec"), namespace)
    return namespace


@pytest.fixture
def displayed(monkeypatch) -> list[str]:
    """What the notebook displays, with a stub of IPython."""
    shown = []

    class Handle:
        def update(self, page: str) -> None:
            shown.append(page)

    def display(page: str, display_id: bool = False) -> Handle:
        shown.append(page)
        return Handle()

    stub = types.ModuleType("IPython.display")
    stub.HTML, stub.display = str, display
    monkeypatch.setitem(sys.modules, "IPython.display", stub)
    return shown


@pytest.fixture
def colab(monkeypatch) -> dict[str, list[str]]:
    """What the notebook asks of Colab, of which there is a stub."""
    asked = {"mounted": [], "downloaded": []}
    stub = types.ModuleType("google.colab")
    stub.drive = types.SimpleNamespace(mount=asked["mounted"].append)
    stub.files = types.SimpleNamespace(download=asked["downloaded"].append)
    monkeypatch.setitem(sys.modules, "google.colab", stub)
    return asked


# What the cells decide.


def flags(platform: str, devices: int) -> list[str]:
    """What the notebook trains with, on such a machine."""
    return definitions("mesh")["training_flags"](platform, devices, 100)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(
    ("devices", "shape", "batch"),
    [(1, (1, 1), 16), (2, (1, 2), 16), (4, (2, 2), 16), (8, (2, 4), 16), (6, (3, 2), 24)],
)
def test_the_config_accepts_the_flags_for_any_machine(platform, devices, shape, batch):
    command = ["--config", str(ROOT / "configs/quickstart.py"), *flags(platform, devices)]
    config, _ = parse_config(command, "train.py")
    mesh = device_mesh.make_mesh(config.mesh, jax.devices()[:devices])
    device_fit.check_fits(config, mesh)
    assert (mesh.shape["data"], mesh.shape["expert"]) == shape
    assert config.data.batch_size == batch and config.run.steps == 100
    assert config.model.dtype == "float32"


@pytest.mark.parametrize(
    ("jax_version", "where", "asked", "kept"),
    [
        ("0.9.1", "tpu", "jax[tpu]>=0.10.2", False),
        ("0.9.1", "cuda12", "jax[cuda12]>=0.10.2", False),
        ("0.9.1", "cuda13", "jax[cuda12]>=0.10.2", False),  # its plugin is already here
        ("0.10.1", "cpu", "jax>=0.10.2", False),
        ("0.10.2", "tpu", "jax", True),
        ("0.11.0", "tpu", "jax", True),
        ("0.12.0.dev1", "cuda12", "jax", True),
    ],
)
def test_a_jax_that_is_new_enough_stays(jax_version, where, asked, kept):
    of_jax = {"jax": jax_version, "jaxlib": jax_version, "libtpu": "0.0.42.1"}
    of_jax |= {"jax-cuda12-plugin": jax_version, "jax-cuda12-pjrt": jax_version}
    installed = of_jax | {"numpy": "2.0.2", "jaxtyping": "0.3"}
    choose = definitions("install")["choose_jax"]
    found = choose([Requirement("jax>=0.10.2")], installed, where)
    assert found == (asked, [f"{name}=={version}" for name, version in of_jax.items()] * kept)


def test_where_there_is_no_jax_the_fitting_one_is_asked_for():
    choose = definitions("install")["choose_jax"]
    assert choose([Requirement("jax>=0.10.2")], {}, "cuda13") == ("jax[cuda13]>=0.10.2", [])


def test_what_is_missing_or_too_old_is_found():
    unmet = definitions("install")["unmet"]
    needed = [Requirement("jax>=0.10.2"), Requirement("array_record>=0.8"), Requirement("tyro>=1")]
    installed = {"jax": "0.11.0.dev3", "array-record": "0.8.3"}
    assert list(map(str, unmet(needed, installed))) == ["tyro>=1"]
    assert len(unmet(needed, {"jax": "0.10.1", "tyro": "0.9"})) == 3


def test_nothing_is_installed_where_all_is_here(capsys):
    install = definitions("install")
    needed, installed = install["requirements"](ROOT), install["installed_versions"]()
    assert "jax" in [need.name for need in needed]
    assert install["unmet"](needed, installed) == []
    install["stream"] = None
    install["install"](ROOT)
    assert "nothing to install" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["0.9.1", "0.11.0", None])
def test_pip_is_asked_as_was_decided(version, capsys, monkeypatch):
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5e-1")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    install, commands = definitions("install"), []
    here = {"jax": version, "jaxlib": version} if version else {}
    install["installed_versions"] = lambda: here

    def stream(command):
        commands.append(command)
        commands.append(Path(command[command.index("-c") + 1]).read_text())

    install["stream"] = stream
    install["install"](ROOT)
    command, constraints = commands
    said = capsys.readouterr().out
    assert command[1:4] == ["-m", "pip", "install"] and command[-3:-1] == ["-e", ROOT]
    if version == "0.11.0":
        assert command[-1] == "jax" and constraints == "jax==0.11.0\njaxlib==0.11.0"
        assert "JAX stayed as it was" in said
    else:
        assert command[-1] == "jax[tpu]>=0.10.2" and constraints == ""
        assert ("Restart the session" in said) == (version is not None)


@pytest.mark.parametrize(
    ("environment", "driver", "where"),
    [
        ({"JAX_PLATFORMS": "cpu", "TPU_ACCELERATOR_TYPE": "v5e-1"}, None, "cpu"),
        ({"TPU_ACCELERATOR_TYPE": "v5e-1"}, None, "tpu"),
        ({}, "CUDA Version: 12.4", "cuda12"),
        ({}, "CUDA Version: 13.0", "cuda13"),
        ({}, "no devices were found", "cpu"),
    ],
)
def test_hardware_is_known_without_jax(environment, driver, where, monkeypatch, tmp_path):
    for name in ("JAX_PLATFORMS", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if driver:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '| {driver} |'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert definitions("install")["hardware"]() == where


def repository_in(folder: Path) -> Path:
    (folder / "configs").mkdir(parents=True)
    for name in ("train.py", "configs/quickstart.py"):
        (folder / name).touch()
    return folder


def test_the_repository_is_found_where_it_is(tmp_path, monkeypatch):
    find = definitions("install")["find_repository"]
    assert find("") == ROOT
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="set `repository` in the first cell"):
        find("")
    repository_in(tmp_path / "packed/moejax-main")
    shutil.make_archive(str(tmp_path / "moejax-main"), "zip", tmp_path / "packed")
    assert find("") == tmp_path / "moejax-main"
    (tmp_path / "moejax-main/notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "moejax-main/notebooks")
    assert find("") == tmp_path / "moejax-main"


def test_an_address_is_cloned(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    install = definitions("install")
    install["stream"] = lambda command: repository_in(tmp_path / command[-1])
    assert install["find_repository"]("https://example.org/moejax") == tmp_path / "moejax"


@pytest.mark.parametrize(
    ("platform", "where", "words"),
    [
        ("tpu", "tpu", "A TPU"),
        ("gpu", "cuda12", "A GPU"),
        ("cpu", "cpu", "on two cores."),
        ("cpu", "tpu", "pip install 'jax[tpu]==0.11.0'"),
    ],
)
def test_what_to_expect_is_said(platform, where, words):
    namespace = definitions("install", "runtime") | {"steps_on_cpu": 200}
    exec(compile(CELLS["runtime"].split("\nfound = ")[0], "runtime", "exec"), namespace)
    said = namespace["expectation"]({"platform": platform, "jax": "0.11.0"}, where)
    assert words in said


# What the cells do.


def test_a_stopped_cell_is_one_signal_to_the_command(capsys):
    stream, calls = definitions("install")["stream"], []
    program = (
        "import signal, time\n"  # where tests run in the background, their children ignore it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n    print('begun', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('saved', flush=True)\n"
    )

    def after_line():
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream([sys.executable, "-c", program], after_line=after_line)
    assert capsys.readouterr().out == "begun\nsaved\n"


def test_a_command_that_fails_stops_the_notebook(capsys):
    stream = definitions("install")["stream"]
    assert stream([sys.executable, "-c", "print(1); print(2)"]) == ["1\n", "2\n"]
    with pytest.raises(RuntimeError, match="exit code 2"):
        stream([sys.executable, "-c", "import sys; sys.exit('no') if 0 else sys.exit(2)"])


def run_in(directory: Path, *steps: int) -> Path:
    """What looks like a run with these checkpoints."""
    for step in steps:
        (directory / f"checkpoints/{step}").mkdir(parents=True)
        (directory / f"checkpoints/{step}/state").write_text(str(step))
    (directory / "load").mkdir(exist_ok=True)
    (directory / f"load/{max(steps):08d}.npz").touch()
    (directory / "metrics.jsonl").write_text(f'{{"step": {max(steps)}, "split": "test"}}\n')
    (directory / ".lock").touch()
    return directory


def names_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_a_copy_has_what_is_finished_and_follows(tmp_path):
    drive = definitions("install", "drive")
    run, copy = run_in(tmp_path / "checkpoints/run", 4, 8), tmp_path / "drive/run"
    (run / "checkpoints/12.orbax-checkpoint-tmp").mkdir()
    (run / "report.html").touch()
    drive["copy_run"](run, copy)
    first = {"metrics.jsonl", "report.html", "load/00000008.npz"}
    assert names_in(copy) == first | {"checkpoints/4/state", "checkpoints/8/state"}
    assert drive["last_step"](copy) == 8 and drive["last_step"](tmp_path / "nothing") == -1

    run_in(run, 12)
    shutil.rmtree(run / "checkpoints/4")
    (run / "report.html").unlink()
    (copy / "checkpoints/12.unfinished").mkdir()  # a copy that was cut off
    drive["copy_run"](run, copy)
    assert (copy / "metrics.jsonl").read_text() == '{"step": 12, "split": "test"}\n'
    steps = {"checkpoints/8/state", "checkpoints/12/state"}
    assert names_in(copy) == {"metrics.jsonl", "load/00000008.npz", "load/00000012.npz"} | steps

    drive["copy_run"](tmp_path / "nothing", copy)  # a training that failed at once
    assert steps <= names_in(copy)


def test_drive_is_opened_where_it_is(tmp_path, colab, capsys):
    namespace = definitions("install", "drive")
    namespace |= {"run": Path("runs/colab"), "drive_folder": str(tmp_path)}
    namespace["save_to_drive"] = False
    assert namespace["open_drive"]() is None and not colab["mounted"]
    namespace["save_to_drive"] = True
    assert namespace["open_drive"]() == tmp_path / "colab"
    assert colab["mounted"] == ["/content/drive"]


def test_outside_colab_the_run_stays_where_it_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "google.colab", None)  # cannot be imported
    namespace = definitions("install", "drive", "save")
    namespace |= {"run": run_in(tmp_path / "run", 4), "save_to_drive": True, "kept": None}
    assert namespace["open_drive"]() is None
    namespace["keep"]()
    assert "run.zip" in capsys.readouterr().out and (tmp_path / "run.zip").exists()


def test_a_run_is_kept_on_drive_or_downloaded(tmp_path, colab, capsys):
    namespace = definitions("install", "drive", "save")
    namespace |= {"run": run_in(tmp_path / "run", 4), "kept": None}
    namespace["keep"]()
    assert colab["downloaded"] == [str(tmp_path / "run.zip")]
    shutil.unpack_archive(tmp_path / "run.zip", tmp_path / "unpacked")
    assert "checkpoints/4/state" in names_in(tmp_path / "unpacked/run")
    namespace["kept"] = tmp_path / "drive/run"
    namespace["keep"]()
    assert "checkpoints/4/state" in names_in(tmp_path / "drive/run")


def test_a_lost_run_comes_back_before_training(tmp_path, displayed):
    namespace = definitions("install", "runtime", "drive", "train")
    run, kept = tmp_path / "run", run_in(tmp_path / "drive", 4)
    namespace |= {"run": run, "kept": kept, "repository_folder": ROOT}
    namespace["training_command"] = lambda steps: ["train.py", str(steps)]
    seen = []

    def stream(command, folder, after_line):
        seen.append(names_in(run))
        (run / "metrics.jsonl").write_text(
            '{"step": 5, "split": "train", "bits_per_byte": 8.1, "dropped_fraction": 0.1,'
            ' "max_violation": 1.5, "dead_experts": 0, "tokens_per_second": 10000}\n'
            '{"step": 6, "spl'
        )
        after_line()
        run_in(run, 6)

    namespace["stream"] = stream
    namespace["train"](6)
    assert "checkpoints/4/state" in seen[0] and "checkpoints/6/state" in names_in(kept)
    assert "waiting for the first line" not in displayed[-1]
    assert "step 5: 8.100 bits/byte" in displayed[-1] and "<polyline" in displayed[-1]

    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RuntimeError, match="remove or rename one of them"):
        namespace["train"](8)


def test_a_page_is_shown_by_its_text(tmp_path, displayed):
    namespace = definitions("train", "report")
    (tmp_path / "page.html").write_text('<p title="a & b">')
    namespace["show_page"](tmp_path / "page.html")
    assert 'srcdoc="&lt;p title=&quot;a &amp; b&quot;&gt;"' in displayed[-1]
    assert not displayed[-1].startswith("<iframe")  # IPython would advise against it


def make_smaller(namespace: dict) -> None:
    """Let the notebook train a narrow model of one layer, and look at little text held out."""
    whole = namespace["training_command"]
    less = ["--model.num-layers", "1", "--model.width", "32", "--run.eval-batches", "1"]
    namespace["training_command"] = lambda steps: whole(steps) + less


@pytest.mark.slow
def test_all_cells_on_colab_with_drive(tmp_path, monkeypatch, colab, displayed, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    namespace = {}
    for name in CELLS:
        execute(name, namespace)
        if name == "settings":
            namespace |= {"steps_on_cpu": 20, "save_to_drive": True}
            namespace["drive_folder"] = str(tmp_path / "drive")
        if name == "mesh":
            make_smaller(namespace)
    said = capsys.readouterr().out
    assert "nothing to install" in said and "2 x cpu (cpu)" in said
    assert "--mesh.data 1 --mesh.expert 2" in said
    assert colab["mounted"] == ["/content/drive"] and not colab["downloaded"]
    assert "The run was copied back from Google Drive." in said
    assert "It went on from step 20." in said
    assert {"checkpoints", "metrics.jsonl", "report.html"} <= set(
        path.name for path in (tmp_path / "drive/colab").iterdir()
    )
    assert namespace["last_step"](tmp_path / "drive/colab") == 22
    assert "warning" not in said.lower()


COMPILE = """
import json, sys
from moejax.runtime import device_fit, device_mesh, targets
from moejax.commands.command_line import parse_config
from moejax.data.tokenizer import choose_vocab_size, load_tokenizer
from moejax.lab.plan.compile_step import compile_step

target, *flags = sys.argv[1:]
config, _ = parse_config(flags, "train.py")
devices = targets.describe_devices(target)
grid = device_mesh.make_mesh(config.mesh, devices)
device_fit.check_fits(config, grid)
vocab_size = choose_vocab_size(config.model, load_tokenizer(config.data.tokenizer))
compiled = compile_step(config, grid, vocab_size)
print(json.dumps({
    "mesh": dict(grid.shape),
    "peak": compiled.memory_analysis().peak_memory_in_bytes,
    "memory": targets.HBM_BYTES[devices[0].device_kind],
    "collectives": targets.count_collectives(compiled.as_text()),
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_step_of_the_notebook_fits_eight_chips(little_effort):
    """Of one chip, tests/test_plan_compile.py says so."""
    command = [sys.executable, "-c", COMPILE, "v5e:2x4", "--config", "configs/quickstart.py"]
    command += flags("tpu", 8)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["mesh"] == {"data": 2, "context": 1, "expert": 4, "model": 1}
    assert found["peak"] < 0.01 * found["memory"]  # as its third section says
    assert found["collectives"]["all-to-all"] and not found["collectives"]["all-gather"]
