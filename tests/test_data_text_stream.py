"""Text given out as it becomes certain."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from moejax.data.text_stream import TextStream, count_begun
from moejax.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer


def streamed(ids, stop=(), tokenizer=None, prompt=()) -> tuple[list[str], TextStream]:
    """The piece of each token, and last what was held back."""
    stream = TextStream(tokenizer or ByteTokenizer(), list(prompt), tuple(stop))
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, stream
    return [*pieces, stream.finish()], stream


def test_a_character_is_held_back_until_its_last_byte():
    pieces, _ = streamed("aé€😀b".encode())
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "😀", "b", ""]


def test_bytes_that_never_become_a_character_are_given_out_all_the_same():
    pieces, _ = streamed(b"a\xff\xffb")
    assert pieces == ["a", "", "", "\ufffd\ufffdb", ""]
    pieces, _ = streamed(b"a\xe2\x82")
    assert pieces == ["a", "", "", "\ufffd"]  # one character, cut short


@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_are_the_text_whatever_the_bytes(seed):
    ids = np.random.default_rng(seed).integers(0, 257, 300)
    pieces, _ = streamed(ids)
    assert "".join(pieces) == ByteTokenizer().decode(ids)


def test_a_stop_string_ends_the_text_before_it_and_its_beginning_waits():
    pieces, stream = streamed(b"one</two</s>three", stop=["</s>"])
    assert pieces == ["o", "n", "e", "", "", "</t", "w", "o", "", "", "", ""]
    assert stream.stopped
    pieces, stream = streamed(b"aaab", stop=["aab"])
    assert "".join(pieces) == "a" and stream.stopped
    pieces, stream = streamed(b"so </", stop=["</s>"])
    assert pieces == ["s", "o", " ", "", "", "</"] and not stream.stopped


def test_the_stop_string_that_begins_first_counts():
    pieces, stream = streamed(b"x1234", stop=["34", "234"])
    assert "".join(pieces) == "x1" and stream.stopped


def test_a_stop_string_in_what_was_held_back_counts_too():
    """The last character is not whole, but after it nothing comes."""
    pieces, stream = streamed(b"ab\xe2", stop=["b\ufffd"])
    assert "".join(pieces) == "a" and stream.stopped


def test_the_beginning_of_a_stop_string():
    texts = ("", "b", "xa", "xaba", "abab")
    assert [count_begun(text, "abab") for text in texts] == [0, 0, 1, 3, 2]


@pytest.fixture
def words(tmp_path) -> HuggingFaceTokenizer:
    """Whole words whose decoder, as SentencePiece's, leaves out a space at the beginning."""
    backend = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2}, unk_token="s"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    return HuggingFaceTokenizer(tmp_path / "tokenizer.json")


def test_the_space_between_the_prompt_and_the_text_is_kept(words):
    assert words.decode([1, 2]) == "cats"
    pieces, _ = streamed([1, 2, 0], tokenizer=words, prompt=[0])
    assert pieces == [" cat", "s", " the", ""]
    pieces, _ = streamed([1, 2, 0], tokenizer=words)
    assert pieces == ["cat", "s", " the", ""]
