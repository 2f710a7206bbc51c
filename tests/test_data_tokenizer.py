"""Tokenizers: every byte of a text is counted exactly once, whatever the text."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from moejax.config import ConfigError
from moejax.data.tokenizer import ByteTokenizer, load_tokenizer

TEXTS = [
    b"",
    b"def f(x):\n    return x\n",
    "Grüße, 世界! 🙂 naïve".encode(),
    b"not \xff\xfe UTF-8 \xc3",
    "cut off: 世".encode()[:-1],
    b"<|endoftext|> spelled out",
    bytes(range(256)),
]


def byte_level_bpe(path, *, special=("<|endoftext|>",)):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["def f(x): return x", "Grüße, Welt"], trainer)
    backend.save(str(path))
    return str(path)


def test_bytes_are_their_own_ids():
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.vocab_size, tokenizer.edges.end) == (257, 256)
    for text in TEXTS:
        ids, counts = tokenizer.encode(text)
        assert ids.dtype == counts.dtype == np.int32
        assert bytes(ids.tolist()) == text
        assert counts.sum() == len(text) == len(ids)
    assert tokenizer.decode([256, 104, 105, 256, 0xFF]) == "hi\ufffd"


@pytest.mark.parametrize("text", TEXTS)
def test_hugging_face_counts_every_byte(tmp_path, text):
    tokenizer = load_tokenizer(byte_level_bpe(tmp_path / "tokenizer.json"))
    ids, counts = tokenizer.encode(text)
    assert ids.dtype == counts.dtype == np.int32
    assert ids.shape == counts.shape
    assert counts.sum() == len(text)
    assert (counts >= 0).all()
    assert tokenizer.edges.end not in ids
    try:
        assert tokenizer.decode([tokenizer.edges.end, *ids]) == text.decode()
    except UnicodeDecodeError:
        assert "\ufffd" in tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["bytes", "file"])
@pytest.mark.parametrize("text", TEXTS[:3] + TEXTS[5:6])
def test_the_spelling_of_tokens_put_together_is_the_text(kind, text, tmp_path):
    name = "bytes" if kind == "bytes" else byte_level_bpe(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(name)
    ids = tokenizer.encode(text)[0].tolist()
    assert b"".join(map(tokenizer.spell, ids)) == text
    assert tokenizer.spell(tokenizer.edges.end) == b"<|endoftext|>"
    assert tokenizer.spell(tokenizer.vocab_size + 7) == b""  # a model may have more


def test_bytes_belong_to_their_token(tmp_path):
    """`é` and `世` take 2 and 3 bytes; of a character in several tokens the first counts all."""
    backend = Tokenizer(models.WordLevel({"é": 0, "世": 1, "ab": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "words.json"))
    ids, counts = load_tokenizer(str(tmp_path / "words.json")).encode("é 世 ab \n".encode())
    assert ids.tolist() == [0, 1, 2]
    assert counts.tolist() == [2, 1 + 3, 1 + 2 + 2]

    tokenizer = load_tokenizer(byte_level_bpe(tmp_path / "bytes.json"))
    ids, counts = tokenizer.encode("世".encode())
    assert len(ids) == 3
    assert counts.tolist() == [3, 0, 0]


def test_dropped_text_still_counts(tmp_path):
    """A normalizer that strips spaces changes the ids, not the sum of the bytes."""
    path = tmp_path / "tokenizer.json"
    byte_level_bpe(path)
    backend = Tokenizer.from_file(str(path))
    backend.normalizer = normalizers.Strip()
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    backend.save(str(path))
    ids, counts = load_tokenizer(str(path)).encode(b"   a long text   ")
    assert 2 < len(ids) < 64
    assert counts.sum() == 17


def test_boundary_is_the_own_one_or_one_past_the_end(tmp_path):
    own = load_tokenizer(byte_level_bpe(tmp_path / "own.json", special=["<pad>", "</s>"]))
    assert own.edges.end == 1
    none = load_tokenizer(byte_level_bpe(tmp_path / "none.json", special=[]))
    assert none.edges.end == none.vocab_size - 1 == max(none._backend.get_vocab().values()) + 1
    assert none.decode([none.edges.end, *none.encode(b"hi")[0], 10_000]) == "hi"
    assert len({own.fingerprint, none.fingerprint, ByteTokenizer.fingerprint}) == 3


def test_folder_of_a_released_model(tmp_path):
    byte_level_bpe(tmp_path / "tokenizer.json")
    assert load_tokenizer(str(tmp_path)).vocab_size > 257


def test_wrong_names_say_what_to_write(tmp_path):
    with pytest.raises(ConfigError, match=r"no file .*gpt2.*tokenizer\.json"):
        load_tokenizer("gpt2")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json is not a Hugging Face tokenizer"):
        load_tokenizer(str(tmp_path / "config.json"))
