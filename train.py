"""Train a model: python train.py --config configs/quickstart.py [--section.field value ...]"""

import shlex
import sys

from moejax.commands.command_line import parse, run_main
from moejax.runtime.allocator import keep_freed_memory


def main() -> None:
    config, name = parse(sys.argv[1:], "python train.py")
    keep_freed_memory()
    from moejax.train.training import train  # late: it starts JAX

    train(config, name=name, command=shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    run_main(main)
