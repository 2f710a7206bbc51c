"""A process that makes shards of tokens: `python -m moejax.data.token_worker`.

It reads from its standard input a job, and then the number of one shard after the other; to its
standard output it answers each with a line: empty, or what went wrong. It ends with its input.
"""

import os
import pickle
import sys
from typing import NamedTuple

from moejax.config.errors import UserError
from moejax.data.documents import Document, Documents
from moejax.data.token_shards import Shards, write_shard
from moejax.data.tokenizer import Tokenizer


class Job(NamedTuple):
    """What all shards are made of."""

    shards: Shards
    documents: Documents
    tokenizer: Tokenizer


class _AskedFor:
    """Documents, as long as somebody asks for them: the process ends with the one that began it."""

    def __init__(self, documents: Documents) -> None:
        self._documents, self._parent = documents, os.getppid()

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        if os.getppid() != self._parent:
            os._exit(1)
        return self._documents[index]


def main() -> None:
    """Make shards until there are no more."""
    job: Job = pickle.load(sys.stdin.buffer)
    documents = _AskedFor(job.documents)
    for line in sys.stdin.buffer:
        answer = ""
        try:
            write_shard(job.shards, int(line), documents, job.tokenizer)
        except (UserError, OSError) as error:
            answer = " ".join(str(error).split())
        print(answer, flush=True)


if __name__ == "__main__":
    # Under its own name, as the process that asks knows `Job` by it.
    from moejax.data.token_worker import main as run

    run()
