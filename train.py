"""Train a model: python train.py --config configs/quickstart.py [--section.field value ...]"""

import sys

from moejax.commands.command_line import errors_as_messages
from moejax.commands.train import train

if __name__ == "__main__":
    with errors_as_messages():
        train(sys.argv[1:], "python train.py", ["python", sys.argv[0]])
