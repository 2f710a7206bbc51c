"""Whether two paths lead to the same model: the one that a run began from may lie elsewhere."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from moejax.config.errors import RunError
from moejax.data.fingerprint import READ_OF_MORE, READ_WHOLE, read_blocks

BASE = "base"
"""The key of a checkpoint with adapters that says which model they belong to: ``sum_arrays``."""


def is_same_model(one: Path, other: Path) -> bool:
    """Whether two directories are one, or hold the same arrays. Of large ones, only blocks are
    read, spread evenly over all files.
    """
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    digests = [sum_arrays(path) for path in (one, other)]
    return digests[0] is not None and digests[0] == digests[1]


def check_base(run: Path, base: str, now: str | None, then: str) -> None:
    """Raise ``RunError`` if the model at ``base`` is not the one that the adapters of a run were
    trained beside.
    """
    if now != then:
        raise RunError(
            f"{run} has adapters of the model that was at {base}, but now there is another. Put the"
            f" old one back there."
        )


def sum_arrays(path: Path) -> str | None:
    """A digest of the files of a model's arrays; None if there are none. Of large ones, only blocks
    are read, as in ``is_same_model``.
    """
    root, files = _find_arrays(path)
    named = sorted((file.relative_to(root).as_posix(), file) for file in files if file.is_file())
    if not named:
        return None
    total = sum(file.stat().st_size for _, file in named)
    share = None if total <= READ_WHOLE else READ_OF_MORE / total
    digest = hashlib.blake2b(digest_size=16)
    for name, file in named:
        size = file.stat().st_size
        digest.update(repr((name, size)).encode())
        for block in read_blocks(str(file), size, share):
            digest.update(block)
    return digest.hexdigest()


def _find_arrays(path: Path) -> tuple[Path, Iterable[Path]]:
    """The folder of a model's arrays and the files in it: of an import, of a run's last checkpoint,
    or of a checkpoint of Hugging Face.
    """
    steps = [folder for folder in path.glob("checkpoints/*") if folder.name.isdigit()]
    if (path / "model").is_dir():
        return path / "model", (path / "model").rglob("*")
    if steps:
        last = max(steps, key=lambda folder: int(folder.name))
        return last, (last / "state").rglob("*")
    return path, path.glob("*.safetensors")
