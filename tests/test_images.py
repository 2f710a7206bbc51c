"""Labelled images: where they come from, how they become batches, and what settings fit them."""

import dataclasses
import functools
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
import test_data_tfds
from PIL import Image

from moejax.config import (
    Config,
    ConfigError,
    DataConfig,
    ImageConfig,
    ImageDataConfig,
    ModelConfig,
    MoEConfig,
    RunConfig,
)
from moejax.data import tfds_source
from moejax.data.fingerprint import explain_change
from moejax.data.image_batches import (
    image_train_batches,
    image_validation_batches,
    make_augmentation,
    shift_image,
)
from moejax.data.images import ImageSet, InMemory, check_images, mark_images, open_images

DIGITS = DataConfig(source="digits")


def numbered(count=20, size=4):
    """Images in which every pixel is the image's number, which is also its class."""
    numbers = np.arange(count, dtype=np.uint8)
    return InMemory(np.tile(numbers[:, None, None, None], (1, size, size, 1)), numbers)


def settings(**images):
    return DataConfig(source="digits", batch_size=8, images=ImageDataConfig(**images))


def test_digits_are_cut_the_same_way_every_time():
    one, again = open_images(DIGITS), open_images(DIGITS)
    assert (len(one.train), len(one.validation)) == (1437, 360)
    assert one.shape == (8, 8, 1) and one.classes == tuple("0123456789")
    assert "1,437 images to train on, 360 held out" in one.description
    seen = {one.train[i][0].tobytes() for i in range(len(one.train))}
    held_out = [one.validation[i] for i in range(len(one.validation))]
    assert all((again.validation[i][0] == held_out[i][0]).all() for i in range(360))
    assert not any(image.tobytes() in seen for image, _ in held_out)
    counts = np.bincount([label for _, label in held_out])
    assert len(counts) == 10 and counts.min() > 20
    assert max(image.max() for image, _ in held_out) == 255


def test_without_scikit_learn_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[images\]'"):
        open_images(DIGITS)


def test_an_epoch_shows_every_image_once_and_each_epoch_another_order():
    batches = image_train_batches(numbered(24), settings(), batch_size=8)
    epochs = [np.concatenate([next(batches)["targets"][:, 0] for _ in range(3)]) for _ in range(2)]
    batches.close()
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()


def test_a_batch_has_images_beside_their_classes():
    batches = image_train_batches(numbered(), settings(), batch_size=8)
    batch = next(batches)
    batches.close()
    assert batch["images"].shape == (8, 4, 4, 1) and batch["images"].dtype == np.uint8
    assert (batch["images"][:, 0, 0] == batch["targets"]).all()
    assert batch["targets"].dtype == np.int32 and (batch["segments"] == 1).all()


def test_resumed_batches_are_those_that_followed():
    batches = image_train_batches(numbered(), settings(shift=1, flip=True), batch_size=8)
    for _ in range(4):
        next(batches)
    place = batches.get_state()
    wanted = [next(batches) for _ in range(3)]
    again = image_train_batches(numbered(), settings(shift=1, flip=True), batch_size=8)
    again.set_state(place)
    for batch in wanted:
        got = next(again)
        assert all((got[name] == batch[name]).all() for name in batch)
    other = image_train_batches(numbered(), settings(shift=2, flip=True), batch_size=8)
    with pytest.raises(ConfigError, match="shift was 1, is 2"):
        other.set_state(place)
    for one in (batches, again, other):
        one.close()


def test_processes_have_the_rows_of_one():
    config = dataclasses.replace(settings(shift=1), shards=2)
    whole = image_train_batches(numbered(), config, batch_size=8)
    halves = [
        image_train_batches(numbered(), config, batch_size=8, rows=np.arange(i, i + 4))
        for i in (0, 4)
    ]
    for _ in range(4):
        batch, parts = next(whole), [next(half) for half in halves]
        for name, x in batch.items():
            assert (np.concatenate([part[name] for part in parts]) == x).all()
    for one in (whole, *halves):
        one.close()
    with pytest.raises(ConfigError, match="1 training examples do not go round --data.shards 2"):
        image_train_batches(numbered(1), config, batch_size=8)


def test_a_shift_moves_pixels_and_brings_in_nothing():
    image = np.arange(1, 10, dtype=np.uint8).reshape(3, 3, 1)
    assert shift_image(image, 1, 0)[..., 0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert shift_image(image, 0, -2)[..., 0].tolist() == [[3, 0, 0], [6, 0, 0], [9, 0, 0]]
    assert (shift_image(image, 0, 0) == image).all() and not shift_image(image, 3, -3).any()


def test_images_are_changed_anew_each_time():
    image = np.arange(1, 17, dtype=np.uint8).reshape(4, 4, 1)
    change, rng = make_augmentation(ImageDataConfig(shift=1, flip=True)), np.random.default_rng(0)
    seen = {change((image, 3), rng)[0].tobytes() for _ in range(300)}
    wanted = {
        side.tobytes()
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        for moved in [shift_image(image, down, right)]
        for side in (moved, np.ascontiguousarray(moved[:, ::-1]))
    }
    assert seen == wanted
    assert change((image, 3), rng)[1] == 3
    assert (make_augmentation(ImageDataConfig())((image, 3), rng)[0] == image).all()


def test_held_out_images_come_once_and_in_order():
    batches = image_validation_batches(numbered(), batch_size=8)
    assert [batch["segments"].sum() for batch in batches] == [8, 8, 4]
    real = [batch["targets"][batch["segments"] > 0] for batch in batches]
    assert np.concatenate(real).tolist() == list(range(20))
    assert all(batch["images"].shape == (8, 4, 4, 1) for batch in batches)
    assert not batches[-1]["images"][4:].any()
    half = image_validation_batches(numbered(), batch_size=8, rows=np.arange(4), limit=2)
    assert [batch["targets"][:, 0].tolist() for batch in half] == [[0, 1, 2, 3], [8, 9, 10, 11]]


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Colour images of one's own, that need no download."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(6, 6, 3)),
            "label": tfds.features.ClassLabel(names=["dark", "light"]),
            "id": tfds.features.Tensor(shape=(), dtype=np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            file = io.BytesIO()
            Image.new("RGB", (6, 6), (20 * i, 0, 200 * (i % 2))).save(file, "PNG")
            yield i, {"image": file.getvalue(), "label": i % 2, "id": i}


from_tfds = functools.partial(test_data_tfds.settings, name="tiny_images")
failure = functools.partial(test_data_tfds.failure, opened=open_images)


def test_a_prepared_set_of_tfds(tmp_path):
    images = open_images(from_tfds(tmp_path))
    assert (len(images.train), len(images.validation)) == (12, 4)
    assert images.classes == ("dark", "light") and images.shape == (6, 6, 3)
    pixels = {images.train[i][0][0, 0].tobytes(): images.train[i][1] for i in range(12)}
    assert pixels == {bytes([20 * i, 0, 200 * (i % 2)]): i % 2 for i in range(12)}
    assert "TFDS tiny_images: 12 images to train on, 4 held out" in images.description


def test_mnist_is_read_as_tfds_gives_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "_is_prepared", lambda builder: True)  # mock data always are
    with tfds.testing.mock_data(num_examples=7):
        images = open_images(from_tfds(tmp_path, name="mnist"))
        image, label = images.train[3]
    assert images.shape == image.shape == (28, 28, 1) and image.dtype == np.uint8
    assert images.classes == tuple("0123456789") and 0 <= label < 10


def test_mnist_without_a_network_says_what_to_do(tmp_path, no_network):
    message = failure(from_tfds(tmp_path, name="mnist"))
    assert "mnist is neither prepared in" in message and "--data.directory" in message
    assert "digits" in message


def test_fields_that_are_no_images_name_those_that_are(tmp_path):
    wrong = from_tfds(tmp_path, images=ImageDataConfig(image_field="label"))
    assert "has no image there. Its image fields are: image." in failure(wrong)
    wrong = from_tfds(tmp_path, images=ImageDataConfig(label_field="id"))
    assert "--data.images.label-field id" in failure(wrong)
    assert "not all of one size" in failure(from_tfds(tmp_path, name="cats_vs_dogs"))


def classifier(**changes) -> Config:
    """A valid one, with some of its settings changed: ``model__width=3``."""
    tree = {
        "model": ModelConfig(
            kind="vit",
            image=ImageConfig(size=8, patch_size=2),
            moe=MoEConfig(group_size=16, num_experts=4),
        ),
        "data": DIGITS,
        "run": RunConfig(),
    }
    for name, value in changes.items():
        part, field = name.split("__")
        tree[part] = dataclasses.replace(tree[part], **{field: value})
    return Config(**tree)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__kind": "decoder"}, "--data.source digits are images: .*--model.kind mlp or vit"),
        ({"data__source": "stdlib"}, "--model.kind vit sees images, but --data.source stdlib"),
        (
            {"model__image": ImageConfig(size=8, patch_size=3)},
            "--model.image.patch-size 3",
        ),
        ({"model__moe": MoEConfig(group_size=24)}, "--model.moe.group-size 24 must divide the tok"),
        ({"model__moe": MoEConfig(router="hash", group_size=16)}, "--model.moe.router hash looks"),
        ({"run__init_from": "x"}, "--run.init-from begins from language models"),
        ({"data__batch_size": 3, "model__moe": MoEConfig(group_size=32)}, "3 images of 16"),
    ],
)
def test_settings_that_do_not_go_with_images(change, message):
    with pytest.raises(ConfigError, match=message):
        classifier(**change)


def test_a_model_for_other_images_is_told_which_they_are():
    images, model = open_images(DIGITS), ModelConfig(kind="mlp")
    with pytest.raises(ConfigError, match="are 8 x 8 pixels of 1: set them to 8 and 1"):
        check_images(images, model)
    fitting = dataclasses.replace(model, image=ImageConfig(size=8))
    check_images(images, fitting)
    with pytest.raises(ConfigError, match="--model.vocab-size 7 is not the number of classes, 10"):
        check_images(images, dataclasses.replace(fitting, vocab_size=7))
    with pytest.raises(ConfigError, match="8 x 4 pixels, but a model sees square ones"):
        check_images(dataclasses.replace(images, shape=(8, 4, 1)), fitting)


def image_set(pixels: np.ndarray, classes: np.ndarray) -> ImageSet:
    """Half of the images on each side."""
    half = len(pixels) // 2
    return ImageSet(
        train=InMemory(pixels[:half], classes[:half]),
        validation=InMemory(pixels[half:], classes[half:]),
        classes=("a", "b"),
        shape=pixels.shape[1:],
        description="images",
    )


CHANGES = {
    "nothing": (lambda x, y: (x, y), None),
    "a pixel": (
        lambda x, y: (x + (np.arange(x.size) == 5).reshape(x.shape), y),
        "image 0 of those",
    ),
    "a class": (lambda x, y: (x, y + (np.arange(len(y)) == 9)), "image 4 of those held out"),
    "the shape": (lambda x, y: (x.reshape(len(x), 2, 8, 1), y), "image 0 of those to train on, im"),
    "the order": (
        lambda x, y: (x[[1, 0, *range(2, len(x))]], y),
        "image 0 of those to train on, im",
    ),
    "one fewer": (lambda x, y: (x[:-2], y[:-2]), "gone: image 4 of those to train on, image 4 of"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_images_that_have_changed_are_told_by_their_fingerprint(change):
    make, words = CHANGES[change]
    pixels = np.arange(10 * 16, dtype=np.uint8).reshape(10, 4, 4, 1)
    classes = np.arange(10) % 2
    before = mark_images(image_set(pixels, classes))
    found = explain_change(before, mark_images(image_set(*make(pixels, classes))))
    assert found is None if words is None else words in found
