"""The tokens of a corpus, made once and kept on disk."""

import contextlib
import hashlib
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from moejax.config.data import DataConfig
from moejax.config.errors import ConfigError
from moejax.data.corpus import Corpus
from moejax.data.find_files import count_words
from moejax.data.fingerprint import Mark
from moejax.data.kept import DONE, find_kept, hold
from moejax.data.token_shards import Shards, StoredTokens, remove_unfinished, write_shard
from moejax.data.token_worker import Job
from moejax.data.tokenizer import ByteTokenizer, Tokenizer
from moejax.runtime.atomic_files import write_json
from moejax.runtime.number_words import duration
from moejax.runtime.processes import say

_VERSION = 2
_SILENCE = 60.0
"""Seconds after which a line is printed, where there is no terminal."""
_ALONE = 3.0
"""Seconds in which this process makes shards by itself: to start others takes as long."""


def cache_tokens(
    corpus: Corpus, tokenizer: Tokenizer, config: DataConfig, marks: Sequence[Mark]
) -> Corpus:
    """The corpus with the tokens of its documents in their place, if the settings ask for it. They
    are made now, in as many processes as there are CPUs, unless they are kept from an earlier run;
    what a killed run has made is used. ``marks``: the fingerprint of the corpus.

    Raises ``ConfigError`` for a document that cannot be read, and for a disk that is full.
    """
    if not is_cached(config, tokenizer) or not isinstance(corpus.train[0], bytes):
        return corpus  # as it is, or tokens already
    from tokenizers import __version__ as library

    sides = []
    for side, documents in (("train", corpus.train), ("validation", corpus.validation)):
        key = [_VERSION, library, tokenizer.fingerprint, list(marks), corpus.stamp, side]
        name = hashlib.sha256(repr([*key, len(documents)]).encode()).hexdigest()[:32]
        folder = find_kept(config.directory) / "tokens" / name
        wide = tokenizer.vocab_size > 2**16
        shards = Shards(folder=folder, documents=len(documents), wide=wide)
        try:
            with hold(folder):
                if not (folder / DONE).is_file():
                    _make_all(Job(shards, documents, tokenizer), corpus.description)
        except OSError as error:
            raise ConfigError(
                f"--data.directory: tokens cannot be kept in {folder}: {error.strerror or error}."
            ) from error
        sides.append(StoredTokens(shards))
    return replace(corpus, train=sides[0], validation=sides[1])


def is_cached(config: DataConfig, tokenizer: Tokenizer) -> bool:
    """Whether the tokens of a corpus are kept: raw bytes are their own tokens."""
    asked = config.token_cache == "always" or (config.token_cache == "auto" and config.names_text)
    return asked and not isinstance(tokenizer, ByteTokenizer)


def _make_all(job: Job, about: str) -> None:
    """Make the shards that are not there yet."""
    shards = job.shards
    shards.folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(shards.folder)
    left = [number for number in range(shards.count) if not shards.is_whole(number)]
    progress = _Progress(shards, left)
    started, workers = time.monotonic(), len(os.sched_getaffinity(0))
    packed = _pack(job) if workers > 1 else None
    while left and (packed is None or time.monotonic() - started < _ALONE):
        write_shard(shards, left[0], job.documents, job.tokenizer)
        progress.add(left.pop(0))
    if packed is not None and left:
        _make_in_processes(packed, left, min(workers, len(left)), progress)
    progress.close()
    write_json(shards.folder / DONE, {"documents": shards.documents, "text": about})


def _pack(job: Job) -> bytes | None:
    """The job for other processes; None if it cannot be handed over (a source of one's own)."""
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, TypeError, AttributeError):
        return None


def _make_in_processes(packed: bytes, left: list[int], workers: int, progress: "_Progress") -> None:
    """Let processes make shards, each the next one that is left."""
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in left:
        numbers.put(number)
    answers: queue.SimpleQueue[tuple[int | None, str]] = queue.SimpleQueue()
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    # One process a CPU: the library's own threads would be in their way.
    environment["TOKENIZERS_PARALLELISM"] = "false"
    command = [sys.executable, "-m", "moejax.data.token_worker"]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        for _ in range(workers):
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
            stack.callback(_end, process)
            feeding = threading.Thread(target=_feed, args=(process, packed, numbers, answers))
            feeding.start()
            stack.callback(feeding.join)
            stack.callback(process.kill)
        for _ in left:
            made, wrong = answers.get()
            if made is None or wrong:
                raise ConfigError(wrong)
            progress.add(made)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and close what leads to it."""
    process.kill()
    process.wait()
    for end in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            assert end is not None
            end.close()


def _feed(
    process: subprocess.Popen[bytes],
    packed: bytes,
    numbers: "queue.SimpleQueue[int]",
    answers: "queue.SimpleQueue[tuple[int | None, str]]",
) -> None:
    """Hand shards to one process, and its answers on."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(packed)
        while True:
            number = numbers.get_nowait()
            process.stdin.write(b"%d\n" % number)
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise BrokenPipeError
            answers.put((number, line.decode("utf-8", "replace").strip()))
    except queue.Empty:
        pass
    except OSError:
        code = process.wait()
        answers.put((None, f"a process that makes tokens has ended with exit code {code}."))


class _Progress:
    """How far it is, and the time left: a bar on a terminal, else a line a minute."""

    def __init__(self, shards: Shards, left: list[int]) -> None:
        self._shards = shards
        self._total = sum(len(shards.numbers(number)) for number in left)
        self._done, self._started = 0, time.monotonic()
        self._said = self._started
        self._bar = tqdm(
            total=self._total, unit="document", desc="tokens", delay=3, disable=None, leave=False
        )

    def add(self, number: int) -> None:
        """One more shard is made."""
        count = len(self._shards.numbers(number))
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._said > _SILENCE:
            self._said = now
            left = (now - self._started) * (self._total / self._done - 1)
            words = f"{self._done:,} of {count_words(self._total, 'document')}"
            say(f"tokens   of {words} made, {duration(left)} left")

    def close(self) -> None:
        """All are made."""
        self._bar.close()
