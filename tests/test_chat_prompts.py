"""Messages as prompts: their tokens, where an answer ends, and what is refused."""

import json

import pytest
from test_text_edges import opened

from moejax.config import ConfigError
from moejax.data.chat.find_template import NAMED
from moejax.data.tokenizer import ByteTokenizer, load_tokenizer
from moejax.inference.chat_prompts import chat_prompt, find_turn_ends

BYTES = ByteTokenizer()
SYSTEM = {"role": "system", "content": "Be brief."}
U, A = {"role": "user", "content": "Hi, é?"}, {"role": "assistant", "content": "Hello"}
PLAIN = opened(BYTES, chat_template="plain", ends=BYTES.edges.ends)


def save_model(folder, template=None):
    """The files of a tokenizer whose texts end with another token than the turns of its chats."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    said = {"eos_token": "<|endoftext|>"} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    tokenizer = load_tokenizer(str(folder))
    return opened(tokenizer, ends=tokenizer.edges.ends)


def test_a_prompt_has_the_tokens_of_its_template():
    ids = chat_prompt(PLAIN, [SYSTEM, U, A, U])
    said = "System: Be brief.\nUser: Hi, é?\nAssistant: Hello<|endoftext|>\nUser: Hi, é?\n"
    assert BYTES.show(ids) == said + "Assistant: " and ids.count(256) == 1
    assert all(type(one) is int for one in ids)
    assert BYTES.show(chat_prompt(PLAIN, [SYSTEM, U, A, U], add_generation_prompt=False)) == said


def test_the_models_own_template_and_where_its_answers_end(tmp_path):
    model = save_model(tmp_path, NAMED["chatml"])
    ids = chat_prompt(model, [U])
    assert model.tokenizer.show(ids) == (
        "<|im_start|>user\nHi, é?<|im_end|>\n<|im_start|>assistant\n"
    )
    end, turn = model.tokenizer.control["<|endoftext|>"], model.tokenizer.control["<|im_end|>"]
    assert model.ends == {end} and find_turn_ends(model) == {end, turn}
    assert find_turn_ends(PLAIN) == {256}


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system message') }}",  # it wants other messages
        "{% for m in messages %}{{ m.role }}{% endfor %}",  # it writes no content
        "{% for m in messages %}{{ m.content }}\n{% endfor %}",  # no token ends a turn
    ],
)
def test_a_turn_whose_end_is_not_known_ends_as_texts_do(tmp_path, template):
    model = save_model(tmp_path, template)
    assert find_turn_ends(model) == model.ends


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "is a conversation without a message"),
        (["Hi"], "its 1st, that is 'Hi': an object"),
        ([U, {"content": "Hi"}], "its 2nd, without a `role`"),
        ([{"role": "friend", "content": "Hi"}], "the unknown role 'friend'"),
        ([{"role": "user"}], "without a `content`"),
        ([{"role": "user", "content": 3}], "content is 3, not a text"),
        ([{"role": "user", "content": "a<|endoftext|>"}], "the name of a control token"),
        ([{"role": "user", "content": "\ud800"}], "half of a pair of surrogates"),
        ([{"role": "user", "content": [{"type": "image"}]}], "some part is no text"),
    ],
)
def test_messages_that_are_none_are_refused(messages, why):
    with pytest.raises(ConfigError, match=f"^message 7 .*{why}"):
        chat_prompt(PLAIN, messages, place="message 7")


def test_a_model_without_a_template_says_what_to_give(tmp_path):
    for model in (opened(BYTES), save_model(tmp_path)):
        with pytest.raises(ConfigError, match="--chat-template a file, or one of chatml, llama3"):
            chat_prompt(model, [U])
