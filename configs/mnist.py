"""The routed classifier of `configs/digits.py` on MNIST, from TensorFlow Datasets.

    pip install -e '.[images,tensorflow]'
    python train.py --config configs/mnist.py

The first run downloads 11 MB and prepares them with TensorFlow, which is not needed afterwards. Not
trained yet on the real images: the machines that this was written on are offline.
"""

import digits

from moejax.config import Config, changed


def get_config() -> Config:
    return changed(
        digits.get_config(),
        {
            "model.image.size": 28,
            "model.width": 128,
            "data.source": "tfds",
            "data.tfds_name": "mnist",
            "data.tfds_validation_split": "test",
            "data.images.shift": 2,
            "run.steps": 3000,
            "run.log_every": 250,
            "run.eval_every": 1000,
            "run.checkpoint_every": 1000,
        },
    )
