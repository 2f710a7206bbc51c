"""Train a model: python train.py --config configs/quickstart.py [--section.field value ...]"""

import sys

from moejax.commands.main import messages

if __name__ == "__main__":
    with messages():
        from moejax.commands.train import train  # after JAX

        train(sys.argv[1:], "python train.py", ["python", sys.argv[0]])
