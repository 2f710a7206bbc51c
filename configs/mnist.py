"""The routed classifier of `configs/digits.py` on MNIST, from TensorFlow Datasets.

    pip install -e '.[images,tensorflow]'
    python train.py --config configs/mnist.py

The first run downloads 11 MB and prepares them with TensorFlow, which is not needed afterwards. Not
trained yet on the real images: the machines that this was written on are offline.
"""

from dataclasses import replace

import digits

from moejax.config import Config, ImageConfig


def get_config() -> Config:
    config = digits.get_config()
    model = replace(config.model, image=ImageConfig(size=28), width=128)
    data = replace(
        config.data,
        source="tfds",
        tfds_name="mnist",
        tfds_validation_split="test",
        images=replace(config.data.images, shift=2),
    )
    run = replace(config.run, steps=3000, log_every=250, eval_every=1000, checkpoint_every=1000)
    return replace(config, model=model, data=data, run=run)
