"""Pack the trainings of a study, so that others can go on from them:

python docs/pack_trainings.py docs/studies/catalogue studies/trained
python docs/pack_trainings.py studies/frontier studies/trained docs/studies/frontier

The first directory has the study's results.json, the second one is the store, the third one gets
trained.tar.xz; by default it is the first. What is needed to compare runs is kept: settings,
metrics, and the last load of experts. Models, choices and pages are not. Of a study that still goes
on, what has come to its end is packed.
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import moejax
from moejax.lab.study.trials import DIVERGED
from moejax.runs.checksums import CHECKSUM, sum_json

KEPT = ("metrics.jsonl", DIVERGED)
PAGE = "<p>The page of this training was not packed. Its figures are in metrics.jsonl.\n"
"""In the place of report.html, which tells that a training came to its end."""


def list_trainings(study: moejax.study.Results) -> list[str]:
    """The names in the store of all that has come to its end."""
    rows = [*study.rows, *study.tuning_rows]
    ended = [row for row in rows if row["status"] in ("finished", "diverged")]
    return sorted({Path(row["place"]).name for row in ended})


def read_files(training: Path) -> dict[str, bytes]:
    """What is kept of a training, by path: nothing says where or in which folder it was made."""
    files = {name: (training / name).read_bytes() for name in KEPT if (training / name).exists()}
    config = json.loads((training / "config.json").read_text(encoding="utf-8"))
    config["run"]["directory"] = f"studies/trained/{training.name}"
    summary = json.loads((training / "summary.json").read_text(encoding="utf-8"))
    summary = {n: v for n, v in summary.items() if n not in ("folder", "command", CHECKSUM)}
    files["config.json"] = json.dumps(config, indent=1).encode()
    files["summary.json"] = json.dumps(summary | {CHECKSUM: sum_json(summary)}, indent=1).encode()
    if (training / "report.html").exists():
        files["report.html"] = PAGE.encode()
    for last in sorted((training / "load").glob("*.npz"))[-1:]:
        files[f"load/{last.name}"] = last.read_bytes()
    return files


def pack(results: Path, store: Path, into: Path | None = None) -> Path:
    """Write the archive; the same trainings make the same bytes."""
    archive = (into or results) / "trained.tar.xz"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:xz", preset=9) as opened:
        for name in list_trainings(moejax.study.load(results)):
            for path, content in sorted(read_files(store / name).items()):
                entry = tarfile.TarInfo(f"trained/{name}/{path}")
                entry.size = len(content)
                opened.addfile(entry, io.BytesIO(content))
    return archive


if __name__ == "__main__":
    made = pack(*map(Path, sys.argv[1:]))
    print(f"{made}: {made.stat().st_size / 1e6:.1f} MB")
