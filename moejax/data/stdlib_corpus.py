"""The standard library of the running Python as a TFDS data set: a real corpus on every machine.

About 10 MB of ``.py`` files. Tests are left out, and so are ``encodings`` and ``pydoc_data``, whose
tables are near-duplicates of each other and would dominate a held-out part of this size.
"""

import contextlib
import hashlib
import io
import logging
import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tensorflow_datasets as tfds

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.config.paths import expand_home

_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
_HELD_OUT = 28  # one file in so many is held out: 3.5 %


@dataclass(frozen=True, kw_only=True)
class LibraryFile:
    """One file of the standard library."""

    path: str
    """Relative to the library, with forward slashes."""
    size: int
    """Bytes."""

    @property
    def split(self) -> str:
        """``train`` or ``validation``, by a hash of the path: the same on every machine."""
        digest = hashlib.sha256(self.path.encode()).hexdigest()
        return "train" if int(digest, 16) % _HELD_OUT else "validation"


def find_library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def list_library_files(root: Path) -> list[LibraryFile]:
    """The non-empty ``.py`` files under ``root`` that belong to the corpus, sorted by path."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not _is_left_out(name)]
        for name in names:
            file = Path(folder, name)
            if name.endswith(".py") and not name.startswith("_sysconfigdata") and file.is_file():
                path, size = file.relative_to(root).as_posix(), file.stat().st_size
                found.append(LibraryFile(path=path, size=size))
    return sorted((file for file in found if file.size), key=lambda file: file.path)


def _is_left_out(folder: str) -> bool:
    """Whether a folder holds tests, tables, other people's packages or build settings."""
    tests = folder in ("test", "tests") or folder.endswith(("_test", "_tests"))
    return tests or folder in _LEFT_OUT or folder.startswith("config-")


class StdlibCorpus(tfds.core.GeneratorBasedBuilder):
    """One example per file: ``path`` and ``text``, the raw bytes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()  # bytes go in and come out untouched, UTF-8 or not
        return tfds.core.DatasetInfo(
            builder=self,
            description="The standard library of one Python interpreter.",
            features=tfds.features.FeaturesDict({"path": text, "text": text}),
            disable_shuffling=True,  # keep the files in the order of their paths
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in ("train", "validation")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str | bytes]]]:
        root = find_library()
        files = (file for file in list_library_files(root) if file.split == split)
        for index, file in enumerate(files):
            yield index, {"path": file.path, "text": (root / file.path).read_bytes()}


def prepare_stdlib(directory: str | None) -> tuple[tfds.core.DatasetBuilder, list[LibraryFile]]:
    """The corpus, written to ``directory`` (by default TFDS's own) unless it is there already.

    It is written under a temporary name and renamed, so that it is there whole or not at all,
    also when two processes start at once. It is kept apart by the version of Python and the names
    and sizes of the files. Raises ``ConfigError`` if there are no files or no place to write.
    """
    directory = directory and expand_home("--data.directory", directory)
    root = find_library()
    files = list_library_files(root)
    check(
        {file.split for file in files} == {"train", "validation"},
        f"this Python's standard library holds too few .py files ({len(files)} in {root}) to train"
        f" on: use --data.source files.",
    )
    listing = "\n".join(f"{file.path} {file.size}" for file in files)
    digest = hashlib.sha256(listing.encode()).hexdigest()[:8]
    name = f"{platform.python_version()}-{digest}"
    config = tfds.core.BuilderConfig(name=name, version=StdlibCorpus.VERSION)

    def builder() -> StdlibCorpus:
        return StdlibCorpus(config=config, data_dir=directory, file_format="array_record")

    with silence_tfds():
        if not builder().is_prepared():
            _write(builder)
        return builder(), files


def _write(builder: Callable[[], StdlibCorpus]) -> None:
    """Prepare ``builder()``, unless another process does so at the same time and is faster."""
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    fresh = builder()
    try:
        fresh.download_and_prepare(download_config=download)
    except OSError as error:
        if not builder().is_prepared():
            raise ConfigError(
                f"cannot write the prepared standard library to {fresh.data_dir}: {error}. Give"
                f" another place by --data.directory."
            ) from error


@contextlib.contextmanager
def silence_tfds() -> Iterator[None]:
    """Silence TFDS: its banners, its progress bars and its log."""
    log = logging.getLogger("absl")
    level = log.level
    tfds.disable_progress_bar()
    log.setLevel(logging.CRITICAL)
    try:
        sink = io.StringIO()
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        log.setLevel(level)
        tfds.enable_progress_bar()
