"""A campaign at random: whatever is killed, signalled, filled or damaged, a run ends as if it had
not been, or one message says what is wrong. No traceback, no hang, no number that differs silently.

    pytest -m slow tests/test_campaign.py --campaign-runs 50 --campaign-seed 7

Each failure names its seed and its trial; ``-k 'flips and 17'`` repeats one trial.
"""

import dataclasses
import json
import random
import re
import signal
import time
from pathlib import Path

import campaign
import hf_models
import pytest
from campaign import Launcher, digest, must, read_page, wait_for
from safetensors.numpy import save_file

from moejax.data.byte_tokenizer import make_byte_tokenizer_files

pytestmark = pytest.mark.slow

STEPS = 60
V = 257
SHARES = {"kill": 1.0, "signal": 0.6, "disk": 0.4, "run_damage": 1.0, "import_damage": 0.6}
SHARES |= {"released_damage": 0.4}
"""Trials of each kind, for one of --campaign-runs."""


def pytest_generate_tests(metafunc):
    """One test for each trial."""
    for name in {"trial"} & set(metafunc.fixturenames):
        share = SHARES[metafunc.function.__name__.removeprefix("test_").split("__")[0]]
        count = max(1, round(share * metafunc.config.getoption("--campaign-runs")))
        metafunc.parametrize(name, range(count))


@dataclasses.dataclass(kw_only=True)
class Undisturbed:
    """What everything is compared with."""

    launcher: Launcher
    place: Path
    released: Path
    imported: Path
    half: Path
    """A run that was stopped at its middle."""
    flags: list
    seconds: float
    """Of the whole run."""
    metrics: list[dict]
    state: dict[str, int]
    page: str
    """The table and the page of ``half``."""
    texts: dict[Path, str]
    """What models generate, by their directories."""

    def train(self, run: Path) -> list:
        return ["train", *self.flags, "--run.directory", run]

    def generate(self, model: Path) -> list:
        return ["generate", model, "--prompt", "def ", "--tokens", 6, "--temperature", 0]


def write_released(place: Path) -> Path:
    """A tiny model of Hugging Face's format with a tokenizer of bytes."""
    place.mkdir()
    sizes = {hf_models.V: V}
    shapes = {k: [sizes.get(d, d) for d in s] for k, s in hf_models.shapes("mixtral").items()}
    tensors = {name: hf_models.values(name, shape) for name, shape in shapes.items()}
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    files = make_byte_tokenizer_files()
    files["config.json"] = hf_models.CASES["mixtral"] | {"vocab_size": V, "eos_token_id": V - 1}
    files["generation_config.json"] = {"eos_token_id": V - 1}
    for name, content in files.items():
        (place / name).write_text(json.dumps(content))
    return place


def list_flags(place: Path) -> list:
    """The settings of the run: a few seconds with checkpoints, evaluations and a report."""
    (place / "text").mkdir()
    for name in ("moe", "data", "optim"):
        text = (campaign.ROOT / f"moejax/config/{name}.py").read_bytes()[:8000]
        (place / "text" / f"{name}.txt").write_bytes(text)
    settings = {
        "--config": place / "imported" / "config.json",
        "--data.source": "files",
        "--data.files": place / "text",
        "--data.sequence-length": 32,
        "--data.batch-size": 4,
        "--data.eval-batch-size": 16,
        "--data.shuffle-window": 64,
        "--model.unroll": False,
        "--optim.learning-rate": 1e-3,
        "--run.steps": STEPS,
        "--run.log-every": 5,
        "--run.eval-every": 15,
        "--run.checkpoint-every": 10,
        "--run.sample-tokens": 0,
    }
    return [word for pair in settings.items() for word in pair]


@pytest.fixture(scope="session")
def alone(tmp_path_factory) -> Undisturbed:
    """A run that nothing disturbed, one that was stopped, an import, and what is said of them."""
    place = tmp_path_factory.mktemp("campaign")
    with Launcher(place / "said") as launcher:
        yield prepare(launcher, place)


def prepare(launcher: Launcher, place: Path) -> Undisturbed:
    """All that trials need."""
    released = write_released(place / "released")
    imported, run, half = (place / name for name in ("imported", "alone", "half"))
    must(launcher.run("import", released, imported))
    flags = list_flags(place)
    whole = must(launcher.run("train", *flags, "--run.directory", run))
    child = launcher.start("train", *flags, "--run.directory", half)
    wait_for(child, f"step 35/{STEPS}")
    child.send(signal.SIGTERM)
    assert child.wait().code == 143
    shown = campaign.copy(half, place / "shown" / "run")
    page = read_page(must(launcher.run("report", shown)), shown)
    made = Undisturbed(
        launcher=launcher,
        place=place,
        released=released,
        imported=imported,
        half=half,
        flags=flags,
        seconds=whole.seconds,
        metrics=campaign.read_metrics(run),
        state=digest(run, STEPS),
        page=page,
        texts={},
    )
    for model in (half, imported):
        made.texts[model] = must(launcher.run(*made.generate(model))).out
    return made


@pytest.fixture
def rng(request) -> random.Random:
    """Random numbers of this trial alone."""
    return random.Random(f"{request.config.getoption('--campaign-seed')} {request.node.name}")


@pytest.fixture
def run(alone, request):
    """A directory for a run."""
    place = alone.place / re.sub(r"\W+", "_", request.node.name)
    yield place
    campaign.remove_folder(place)


def check_end(alone: Undisturbed, run: Path) -> None:
    """The same command again ends as the undisturbed run did."""
    outcome = alone.launcher.run(*alone.train(run))
    assert outcome.code == 0 and outcome.fault is None, outcome
    assert campaign.read_metrics(run) == alone.metrics, outcome
    assert digest(run, STEPS) == alone.state, outcome
    assert (run / "report.html").is_file(), outcome


def wait_for_moment(alone: Undisturbed, child, run: Path, rng: random.Random) -> str:
    """Wait for a random moment: any, or one while a checkpoint is written, or near the end."""
    kind = rng.choice(["any", "any", "saving", "ending"])
    began, limit = time.monotonic(), rng.uniform(0, 0.95 * alone.seconds)
    if kind != "any":
        limit = 2 * alone.seconds
    words = {"ending": f"step {STEPS}/{STEPS}"}.get(kind)
    after = rng.uniform(0, 0.1)
    saves = rng.randrange(1, 5)
    seen: set[Path] = set()
    while time.monotonic() - began < limit:
        if kind == "saving":
            seen |= set(run.glob("checkpoints/*.orbax-checkpoint-tmp*"))
            if len(seen) >= saves:
                break
        if words and words in child.said():
            break
        time.sleep(0.002)
    time.sleep(after if kind != "any" else 0)
    return f"{kind}, {time.monotonic() - began:.2f} s after the start"


def test_kill__and_the_same_command(alone, run, rng, trial):
    """kill -9 at a random moment, often again while it resumes."""
    for _ in range(rng.choice([1, 1, 2])):
        child = alone.launcher.start(*alone.train(run))
        wait_for_moment(alone, child, run, rng)
        child.send(signal.SIGKILL)
        outcome = child.wait()
        assert outcome.fault is None, outcome
    check_end(alone, run)


def test_signal__and_the_same_command(alone, run, rng, trial):
    """SIGTERM or Ctrl-C, or two of them: it says so, and ends with their exit code."""
    child = alone.launcher.start(*alone.train(run))
    when = wait_for_moment(alone, child, run, rng)
    numbers = rng.choices([signal.SIGINT, signal.SIGTERM], k=rng.choice([1, 2]))
    for number in numbers:
        child.send(number)
        time.sleep(rng.choice([0, 0.01, 0.3]))
    outcome = child.wait()
    assert outcome.fault is None, (when, numbers, outcome)
    codes = {0} | {128 + number for number in numbers} | {-number for number in numbers}
    assert outcome.code in codes, (when, numbers, outcome)
    check_end(alone, run)


def test_disk__full_at_a_random_moment(alone, run, rng, trial):
    """One message; the checkpoints before are unharmed, and with room the same command goes on."""
    whole = sum(file.stat().st_size for file in campaign.list_files(alone.half))
    by_file = rng.random() < 0.5
    with campaign.small_disk(run, rng.randrange(8192, whole)) as make_room:
        inside = run / "run"
        limit = rng.randrange(500, 80_000) if by_file or make_room is None else None
        outcome = alone.launcher.run(*alone.train(inside), most_bytes=limit)
        assert outcome.fault is None and outcome.code in (0, 2), outcome
        if make_room is not None:
            make_room()
        check_end(alone, inside)


def pick_harm(folder: Path, rng: random.Random, trial: int) -> str:
    """Harm a random file of a random kind; bits are flipped in every second trial."""
    kinds: dict[str, list[Path]] = {}
    for file in campaign.list_files(folder):
        kinds.setdefault(campaign.name_kind(file, folder), []).append(file)
    file = rng.choice(kinds[rng.choice(sorted(kinds))])
    name = "flip" if trial % 2 == 0 else rng.choice(sorted(campaign.DAMAGE))
    return f"{file.relative_to(folder)}: {campaign.DAMAGE[name](file, rng)}"


def test_run_damage__is_noticed_or_changes_nothing(alone, run, rng, trial):
    """Any file of a run that was stopped."""
    run = campaign.copy(alone.half, run / "run")
    harm = pick_harm(run, rng, trial)
    launcher = alone.launcher
    checked = launcher.run("check", run)
    assert checked.fault is None and checked.code in (0, 1, 2), (harm, checked)
    page = launcher.run("report", run)
    assert page.fault is None and page.code in (0, 2), (harm, page)
    if page.code == 0 and not page.noticed:
        shown = read_page(page, run)
        words = ("cannot be read", "damaged", "cut short", "not what was written")
        assert shown == alone.page or any(word in shown for word in words), (harm, page)
    text = launcher.run(*alone.generate(run))
    assert text.fault is None and text.code in (0, 2), (harm, text)
    assert text.noticed or text.out == alone.texts[alone.half], (harm, text)
    resumed = launcher.run(*alone.train(run))
    assert resumed.fault is None and resumed.code in (0, 2), (harm, resumed)
    if resumed.code == 0:
        same = campaign.read_metrics(run) == alone.metrics
        assert resumed.noticed or same, (harm, resumed)
        assert digest(run, STEPS) == alone.state, (harm, resumed)
        assert (run / "report.html").is_file(), (harm, resumed)


def test_import_damage__is_noticed_or_changes_nothing(alone, run, rng, trial):
    """Any file of a model that `moejax import` wrote."""
    campaign.copy(alone.imported, run)
    harm = pick_harm(run, rng, trial)
    checked = alone.launcher.run("check", run)
    assert checked.fault is None and checked.code in (0, 1, 2), (harm, checked)
    text = alone.launcher.run(*alone.generate(run))
    assert text.fault is None and text.code in (0, 2), (harm, text)
    assert text.noticed or text.out == alone.texts[alone.imported], (harm, text)


def test_released_damage__never_ends_in_a_traceback(alone, run, rng, trial):
    """Any file of a released model. Its format has no checksums: another number may be a number."""
    source = campaign.copy(alone.released, run / "released")
    harm = pick_harm(source, rng, trial)
    read = alone.launcher.run("import", source, run / "imported")
    assert read.fault is None and read.code in (0, 2), (harm, read)
    if read.code == 0:
        text = alone.launcher.run(*alone.generate(run / "imported"))
        assert text.fault is None and text.code in (0, 2), (harm, text)
