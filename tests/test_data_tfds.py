"""TFDS by name: prepared on first use, and errors within seconds that say what to do."""

import http.server
import json
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from moejax.config import ConfigError, DataConfig
from moejax.data import tfds_source
from moejax.data.sources import open_documents, open_text


class TinyTexts(tfds.core.GeneratorBasedBuilder):
    """A data set of one's own, that needs no download."""

    VERSION = tfds.core.Version("1.0.0")
    prepared = 0

    def _info(self):
        features = {
            "text": tfds.features.Text(),
            "title": tfds.features.Tensor(shape=(), dtype=np.object_),
            "stars": tfds.features.Tensor(shape=(), dtype=np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(40), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        type(self).prepared += 1
        for i in range(count):
            yield i, {"text": f"text {i} \N{SNOWMAN}", "title": b"title", "stars": i}


class NeedsTensorflow(TinyTexts):
    """One that turns out to need TensorFlow in the middle."""

    def _generate_examples(self, count):
        raise ModuleNotFoundError("No module named 'tensorflow'")
        yield


def settings(tmp_path, name="tiny_texts", **changes):
    changes = {"tfds_validation_split": "test", **changes}
    return DataConfig(source="tfds", tfds_name=name, directory=str(tmp_path), **changes)


def failure(config, opened=open_documents):
    """The message of the error that opening ends in, which takes less than 10 seconds."""
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        opened(config)
    assert time.monotonic() - start < 10
    return str(caught.value)


def test_prepared_on_first_use_and_read_again(tmp_path, no_network):
    TinyTexts.prepared = 0
    corpus = open_documents(settings(tmp_path))
    texts = {corpus.train[i] for i in range(len(corpus.train))}
    assert texts == {f"text {i} \N{SNOWMAN}".encode() for i in range(40)}
    assert len(corpus.validation) == 4
    assert "TFDS tiny_texts: 40 documents to train on, 4 documents held out" in corpus.description
    open_documents(settings(tmp_path))
    assert TinyTexts.prepared == 2  # once for each split


def test_shares_of_splits_and_other_fields(tmp_path):
    shares = {"tfds_train_split": "train[:90%]", "tfds_validation_split": "train[90%:]"}
    corpus = open_documents(settings(tmp_path, tfds_text_field="title", **shares))
    assert (len(corpus.train), len(corpus.validation)) == (36, 4)
    assert corpus.train[0] == b"title"


def test_one_flag_names_a_data_set(tmp_path):
    place = {"tfds_validation_split": "test", "directory": str(tmp_path)}
    config = DataConfig(train="tfds:tiny_texts", field="title", **place)
    corpus, same = open_documents(config), settings(tmp_path, tfds_text_field="title")
    assert corpus.description == open_documents(same).description
    assert corpus.train[0] == b"title" and len(corpus.validation) == 4
    words = "^--data.train tfds:tiny_texts: --data.field body: .*Its text fields are: text, title"
    with pytest.raises(ConfigError, match=words):
        open_documents(DataConfig(train="tfds:tiny_texts", field="body", **place))


def test_a_split_may_be_a_text_to_evaluate_on(tmp_path):
    options = {"field": "text", "directory": str(tmp_path)}
    documents, about = open_text("tfds:tiny_texts", split="train[:50%]", **options)
    assert len(documents) == 20 and documents[0].startswith(b"text ")
    assert about == "TFDS tiny_texts, train[:50%]: 20 documents"
    with pytest.raises(ConfigError, match="^--data tfds:tiny_texts: --split dev.*has the splits"):
        open_text("tfds:tiny_texts", split="dev", **options)


def test_unknown_field_and_split_name_the_known(tmp_path):
    assert "text fields are: text, title" in failure(settings(tmp_path, tfds_text_field="stars"))
    message = failure(settings(tmp_path, tfds_validation_split="validation"))
    assert "--data.tfds-validation-split validation" in message
    assert "has the splits test, train" in message or "has the splits train, test" in message
    message = failure(settings(tmp_path, tfds_train_split="train[:0%]"))
    assert "--data.tfds-train-split train[:0%]" in message


def test_unknown_name_suggests_near_ones(tmp_path):
    message = failure(settings(tmp_path, "tiny_shakespear"))
    assert "knows no such data set; near are tiny_shakespeare" in message
    assert "leave out the `huggingface:`" in failure(settings(tmp_path, "huggingface:gpt"))
    assert "1.1.0" in failure(settings(tmp_path, "lm1b:9.9.9"))


@pytest.mark.parametrize("name", ["lm1b", "c4/en"])
def test_neither_prepared_nor_reachable(tmp_path, no_network, name):
    message = failure(settings(tmp_path, name))
    assert "neither prepared in" in message and str(tmp_path) in message
    assert "--data.directory" in message


def test_tensorflow_is_named_when_it_is_missing(tmp_path):
    assert "pip install 'moejax[tensorflow]'" in failure(settings(tmp_path, "needs_tensorflow"))


def test_prepared_in_a_format_without_random_access(tmp_path):
    open_documents(settings(tmp_path))
    info = Path(tmp_path, "tiny_texts", "1.0.0", "dataset_info.json")
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    assert "without random access" in failure(settings(tmp_path))


def test_a_server_that_refuses_is_reachable_one_that_is_silent_is_not():
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        assert tfds_source._is_reachable(f"http://127.0.0.1:{server.server_port}/", 5)
        thread.join()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not tfds_source._is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/", 0.3)
        assert time.monotonic() - start < 2
