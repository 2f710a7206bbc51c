"""How texts begin and end with released tokenizers, and what is lost of them."""

import json

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from moejax.commands.describe_import import describe_import, find_fault
from moejax.config import ConfigError, ModelConfig
from moejax.data.check_tokens import check_known
from moejax.data.lost_text import LostText, count_lost, measure_loss
from moejax.data.pipeline import Pieces
from moejax.data.text_edges import read_edges
from moejax.data.tokenizer import ByteTokenizer, load_tokenizer
from moejax.inference.kept_files import adopt_edges
from moejax.inference.open_model import OpenModel
from moejax.lab.evaluation import describe_figures

WORDS = ["<s>", "</s>", "<unk>", "the", "sea", "<eos>", "<EOS>", "[CLS]", "[SEP]"]
S, END, UNK, THE, SEA, EOS, LOUD, CLS, SEP = range(9)


def write(folder, *, special=("<s>", "</s>", "<unk>"), single=None, post=None, name=None, **files):
    """A tokenizer of words, and the files beside it."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(special))
    if single:
        used = [(word, WORDS.index(word)) for word in single.split() if word in WORDS]
        post = processors.TemplateProcessing(single=single, special_tokens=used)
    if post:
        backend.post_processor = post
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / (name or "tokenizer.json")))
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder / (name or "tokenizer.json")


CONFIG = {"model_type": "mixtral"}
BOTH = CONFIG | {"bos_token_id": S, "eos_token_id": END}
SEVERAL = {"eos_token_id": [EOS, END]}
NAMED = {"bos_token": {"content": "<s>"}, "eos_token": "<EOS>"}
CASES = {
    # What there is; then before a text, before a document, the end, what ends a text.
    "config.json": ({"config": BOTH}, (), (S,), END, {END}),
    "config.json and a template": (
        {"config": BOTH, "single": "<s> $A"}, (S,), (S,), END, {END},
    ),
    "a list": (
        {"config": CONFIG | {"eos_token_id": [LOUD, END]}}, (), (LOUD,), LOUD, {LOUD, END},
    ),
    "generation_config.json has more ends": (
        {"config": BOTH, "generation_config": SEVERAL}, (), (S,), END, {END, EOS},
    ),
    "generation_config.json alone": (
        {"config": CONFIG, "generation_config": SEVERAL}, (), (EOS,), EOS, {END, EOS},
    ),
    "an end of another name": (
        {"tokenizer_config": NAMED}, (), (S,), LOUD, {LOUD},
    ),
    "config.json before names": (
        {"config": BOTH, "tokenizer_config": NAMED}, (), (S,), END, {END},
    ),
    "special_tokens_map.json": (
        {"special_tokens_map": {"eos_token": "<eos>"}}, (), (EOS,), EOS, {EOS},
    ),
    "ids that are none": (
        {"config": CONFIG | {"bos_token_id": None, "eos_token_id": -1},
         "generation_config": {"eos_token_id": [999, True, "1", 2.0]}},
        (), (END,), END, {END},
    ),
    "a config.json of ours": ({"config": {"eos_token_id": EOS}}, (), (END,), END, {END}),
    "the model's in an import": (
        {"config": {"eos_token_id": EOS}, "huggingface": BOTH}, (), (S,), END, {END},
    ),
    "an ordinary </s> beside a special <eos>": (
        {"special": ["<eos>"]}, (), (EOS,), EOS, {EOS},
    ),
    "a special <EOS> alone": ({"special": ["<EOS>"]}, (), (LOUD,), LOUD, {LOUD}),
    "nothing special": ({"special": []}, (), (END,), END, {END}),
    "add_bos_token without a template": (  # as in transformers 5.24
        {"tokenizer_config": NAMED | {"add_bos_token": True}}, (), (S,), LOUD, {LOUD},
    ),
    "add_bos_token false": (
        {"tokenizer_config": NAMED | {"add_bos_token": False}, "single": "<s> $A </s>"},
        (S,), (S,), LOUD, {LOUD},
    ),
    "a template with an end": ({"single": "<s> $A </s>"}, (S,), (S,), END, {END}),
    "T5's": ({"single": "$A </s>"}, (), (END,), END, {END}),
    "BERT's": (
        {"special": ["[CLS]", "[SEP]"],
         "post": processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))},
        (CLS,), (CLS,), SEP, {SEP},
    ),
    "RoBERTa's": (
        {"post": processors.RobertaProcessing(("</s>", END), ("<s>", S))}, (S,), (S,), END, {END},
    ),
    "two tokens": ({"single": "[CLS] <s> $A"}, (CLS, S), (CLS, S), END, {END}),
    "one after the other": (
        {"post": processors.Sequence([
            processors.ByteLevel(),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", S)]),
        ])},
        (S,), (S,), END, {END},
    ),
    "a file of another name": (
        {"name": "other.json", "config": BOTH | {"eos_token_id": EOS}}, (), (END,), END, {END},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_how_texts_begin_and_end(tmp_path, case):
    files, before, document, end, ends = CASES[case]
    edges = load_tokenizer(str(write(tmp_path, **files))).edges
    assert (edges.before_text, edges.before_document) == (before, document)
    assert (edges.end, edges.ends) == (end, frozenset(ends))
    assert edges.beginning_from and edges.end_from


def test_without_an_end_it_is_one_past_the_vocabulary(tmp_path):
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.edges.end, tokenizer.vocab_size) == (2, 3)


def test_a_damaged_file_is_named(tmp_path):
    file = write(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json cannot be read"):
        load_tokenizer(str(file))


@pytest.mark.parametrize(("single", "before"), [("<s> $A </s>", [S]), ("[CLS] <s> $A", [CLS, S])])
def test_a_document_has_its_beginning_once_and_its_end(tmp_path, single, before):
    cut = Pieces(b"the sea", load_tokenizer(str(write(tmp_path, single=single))), 2)
    pieces = [cut[number] for number in range(len(cut))]
    assert pieces[0].tokens[0] == before[0]
    tokens = [before[0], *(token for piece in pieces for token in piece.tokens[1:])]
    assert tokens == [*before, THE, SEA, END]
    counts = [count for piece in pieces for count in piece.target_bytes]
    assert counts == [0] * (len(before) - 1) + [3, 4, 0]


def opened(tokenizer, **more):
    fields = dict.fromkeys(OpenModel.__dataclass_fields__) | {"vocab_size": tokenizer.vocab_size}
    fields |= {"tokenizer": tokenizer, "beginning": tokenizer.edges.before_text}
    return OpenModel(**fields | more)


@pytest.mark.parametrize(
    ("single", "prompt", "special", "want"),
    [
        ("<s> $A </s>", "the sea", False, [S, THE, SEA]),
        ("$A </s>", "the sea", False, [THE, SEA]),
        ("<s> $A", "the </s> sea", False, [S, THE, UNK, SEA]),
        ("<s> $A", "the </s> sea", True, [S, THE, END, SEA]),
        ("<s> $A", "<s>the sea", True, [S, THE, SEA]),
        ("<s> $A </s>", "</s>", True, [S, END]),
        ("<s> $A", "", True, [S]),
    ],
)
def test_what_a_prompt_becomes(tmp_path, single, prompt, special, want):
    model = opened(load_tokenizer(str(write(tmp_path, single=single))))
    ids = model.begin(prompt, special)
    assert ids.dtype == np.int32 and ids.tolist() == want


def test_bytes_have_no_named_tokens():
    with pytest.raises(ConfigError, match="--special-tokens: .* leave it out"):
        opened(ByteTokenizer()).begin("</s>", True)


def unigram():
    pieces = ["<unk>", "</s>", "a", "<", "/", "s", ">", "<x>"]
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    return Tokenizer(models.Unigram(vocabulary, 0, False))


def word_level():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def word_piece():
    pieces = {"<unk>": 0, "</s>": 1, "a": 2, "<": 3, "##/": 4, "##s": 5, "##>": 6}
    backend = Tokenizer(models.WordPiece(pieces, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def merging():
    pieces = {"<unk>": 0, "</s>": 1, "a": 2, "<": 3, "/": 4, "s": 5, ">": 6, "</": 7, "</s": 8}
    merges = [("<", "/"), ("</", "s"), ("</s", ">")]
    backend = Tokenizer(models.BPE(pieces, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


@pytest.mark.parametrize(
    ("make", "want"),
    [
        (unigram, [3, 4, 5, 6, 0, 2]),
        (word_level, [0, 2]),
        (word_piece, [3, 4, 5, 6, 2]),
        (merging, [8, 6, 2]),
    ],
)
@pytest.mark.parametrize("special", [["</s>", "<unk>"], []])
def test_a_control_token_that_is_spelled_out_is_text(tmp_path, make, want, special):
    backend = make()
    backend.add_special_tokens(special)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    ids, counts = tokenizer.encode(b"</s> a")
    assert ids.tolist() == want and counts.sum() == 6
    assert tokenizer.edges.end == 1
    assert tokenizer.encode_with_names("</s>").tolist()[:1] == [1]


def test_a_token_beyond_the_embedding_is_named(tmp_path):
    tokenizer = load_tokenizer(str(write(tmp_path)))
    with pytest.raises(ConfigError, match=r"token 4 'sea', but .* 4 rows, for the tokens 0 to 3"):
        opened(tokenizer, vocab_size=4).begin("the sea")
    assert opened(tokenizer, vocab_size=4).begin("the").tolist() == [THE]
    check_known(np.zeros((2, 0), np.int32), 1, tokenizer)


def bytes_level(normalizer=None):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


def metaspace():
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("a", -1.0), ("b", -1.0)]
    backend = Tokenizer(models.Unigram(pieces, 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<unk>"])
    return backend


LOSSES = [
    (bytes_level(), "Grüße, 世界! 🙂\r\n\x00", 0),
    (bytes_level(), b"no UTF-8 \xff", 0),
    (bytes_level(normalizers.NFC()), "e\u0301 is \u00e9", 0),
    (bytes_level(normalizers.NFKC()), "\u2026 a", 3),
    (bytes_level(normalizers.Lowercase()), "The Sea", 2),
    (bytes_level(normalizers.Replace("e", "")), "the sea", 2),
    (metaspace(), "a b  a", 0),
    (metaspace(), " a", 0),
    (metaspace(), "a b\nxyz", 4),
    (word_level(), "a a a", 0),
    (word_level(), "a\na", 1),
]


@pytest.mark.parametrize(("backend", "text", "lost"), LOSSES)
def test_what_does_not_come_back_is_lost(tmp_path, backend, text, lost):
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    text = text if isinstance(text, bytes) else text.encode()
    assert count_lost(text, tokenizer.encode(text)[0], tokenizer) == lost
    both = LostText()
    both.add(text, tokenizer.encode(text)[0], tokenizer)
    both.add(b"x" * 10, np.zeros(0, np.int32), ByteTokenizer())  # bytes lose nothing
    assert both.share == lost / (len(text) + 10)
    assert measure_loss([text, b"x" * 10], tokenizer, len(text)) == lost / len(text)
    assert measure_loss([b"x"], ByteTokenizer()) == 0


def test_a_normalizer_that_fails_on_a_text_is_named(tmp_path, capfd):
    backend = bytes_level(normalizers.Replace(Regex(r"(a+)+b\b$"), "b"))
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    with pytest.raises(ConfigError, match=r"tokenizer\.json fails on the text 'aaa.*retry-limit"):
        tokenizer.encode(b"a" * 5000 + b"!")
    assert capfd.readouterr().err == ""
    assert len(tokenizer.encode(b"hi")[0]) == 2


def test_a_normalizer_that_fails_on_every_text_is_named(tmp_path, capfd):
    backend = word_level()
    backend.add_special_tokens(["</s>"])
    backend.normalizer = normalizers.Precompiled(b"\x04\x00\x00\x00\xff\xff\xff\xffzz")
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"tokenizer\.json fails on the names .*out of bounds"):
        load_tokenizer(str(tmp_path))
    assert "cannot be used" in find_fault(tmp_path, 9)
    assert capfd.readouterr().err == ""


def test_a_run_keeps_how_its_texts_begin_and_end(tmp_path):
    """Whatever the released files say later; a run of an earlier version knew one token."""
    file = write(tmp_path / "model", config=BOTH, single="<s> $A")
    run = tmp_path / "run"
    (run / "tokenizer").mkdir(parents=True)
    edges = load_tokenizer(str(file)).edges
    (run / "tokenizer" / "edges.json").write_text(json.dumps(edges.to_json()))
    assert read_edges(run / "tokenizer" / "edges.json") == edges
    write(tmp_path / "model", config=BOTH | {"eos_token_id": EOS})
    now = load_tokenizer(str(file))
    assert adopt_edges(now, run).edges.end == EOS  # nothing is trained yet
    (run / "checkpoints" / "1").mkdir(parents=True)
    assert adopt_edges(now, run).edges == edges
    (run / "tokenizer" / "edges.json").unlink()
    older = adopt_edges(now, run).edges
    assert (older.before_document, older.end, older.ends) == ((END,), END, {END})
    (run / "tokenizer" / "edges.json").write_text('{"end": []}')
    with pytest.raises(ConfigError, match=r"edges\.json is damaged"):
        adopt_edges(now, run)


def test_an_import_says_what_is_wrong_with_the_tokenizer(tmp_path):
    assert "without a tokenizer.json" in find_fault(tmp_path, 9)
    words = describe_import("mixtral", ModelConfig(vocab_size=9), tmp_path)
    assert words.index("\nnote ") < words.index(f"tokenizer.json into {tmp_path}; then")
    assert f"--data.tokenizer {tmp_path / 'tokenizer.json'}" in words
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "cannot be used" in find_fault(tmp_path, 9)
    write(tmp_path)
    assert find_fault(tmp_path, 9) == ""
    words = describe_import("mixtral", ModelConfig(vocab_size=9), tmp_path)
    assert "note" not in words and "--data.tokenizer" not in words
    assert "has 9 tokens, but its embedding has 8 rows" in find_fault(tmp_path, 8)


def test_no_bits_per_byte_of_text_that_is_lost():
    figures = {"model": "m", "data": "d", "batches": 1, "sequence_length": 8, "seconds": 1.0}
    figures |= {"perplexity": 2.0, "tokens": 4, "text_bytes": 400, "bits_per_byte": 1.5}
    text = describe_figures(figures | {"lost_fraction": 0.0}, ModelConfig())
    assert "bits/byte  1.5000 (400 bytes)" in text
    lost = {"bits_per_byte": None, "lost_fraction": 0.125}
    text = describe_figures(figures | lost, ModelConfig())
    assert "bits/byte  none: the tokenizer loses 12.50% of the 400 bytes of text" in text
