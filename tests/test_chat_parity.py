"""Conversations beside transformers, where it is installed: texts, tokens and the assistant's."""

import importlib.util
import json

import numpy as np
import pytest
from test_chats import BY_HAND, SYSTEM, TALK, THINKING

from moejax.data.chat.conversations import ChatFormat
from moejax.data.chat.find_template import find_template
from moejax.data.chat.messages import find_messages
from moejax.data.tokenizer import load_tokenizer
from moejax.inference.chat_prompts import write_prompt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
        reason="needs torch and transformers (pip install -e '.[peers]')",
    ),
    pytest.mark.filterwarnings("ignore"),  # theirs
]

CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|eot_id|>"]
CONTROL += ["<|user|>", "<|assistant|>", "<|system|>", "<start_of_turn>", "<end_of_turn>"]
CONTROL += ["<|end|>", "<|start_header_id|>", "<|end_header_id|>", "<unk>"]
TALKS = [
    TALK,
    [*TALK, {"role": "user", "content": "  \n"}, {"role": "assistant", "content": ""}],
    [TALK[0], {"role": "assistant", "content": "日本 🙂 e\u0301\n\n  x", "reasoning": "hm"}],
    [{"role": "user", "content": "a" * 300}, {"role": "assistant", "content": "b \u00a0" * 99}],
]
MARKED = {
    "chatml": BY_HAND["chatml"][0],
    "llama3": BY_HAND["llama3"][0],
    "plain": BY_HAND["plain"][0],
    "half words": "{% for m in messages %}a{% generation %}b{{ m.content }}c{% endgeneration %}d"
    "{% endfor %}",
    "calls": "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{%- generation -%} {{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "{{ eos_token }}{%- endgeneration -%}{% else %}[INST]{{ m.content }}[/INST]{% endif %}"
    "{% endfor %}{{ tools | tojson if tools else '' }}",
    "reasoning": "{% for m in messages %}{{ m.role }}{% generation %}{{ m.reasoning_content }}"
    "{{ m.thinking }}{{ m.content }}{% endgeneration %}{% endfor %}",
}


@pytest.fixture(scope="module", params=["bytes", "pieces"])
def tokenizers_of(request, tmp_path_factory):
    """A tokenizer of theirs and its folder: of bytes, and with SentencePiece's spaces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend, alphabet = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True)), []
    if request.param == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=CONTROL, show_progress=False
    )
    texts = [json.dumps(talk, ensure_ascii=False) for talk in TALKS]
    backend.train_from_iterator([*texts, "user assistant system Be brief. Hello hello"], trainer)
    folder = tmp_path_factory.mktemp(request.param)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    theirs.save_pretrained(folder)
    return theirs, folder


def read(folder, talk, tools=None):
    """Our tokens of a conversation, by the folder's own template."""
    tokenizer = load_tokenizer(str(folder))
    template = find_template("auto", tokenizer)
    chat = ChatFormat(template=template, tokenizer=tokenizer, field=None, length=9, too_long="cut")
    return chat.encode_value({"messages": talk, "tools": tools}, "x"), template


@pytest.mark.parametrize("name", MARKED)
def test_tokens_and_masks_are_theirs(name, tokenizers_of):
    theirs, folder = tokenizers_of
    theirs.chat_template = MARKED[name]
    theirs.save_pretrained(folder)
    tools = [{"type": "function", "name": "é"}] if name == "calls" else None
    called = TALKS[0][:1] + [{"role": "assistant", "content": "x", "tool_calls": [{"f": 1}]}]
    for talk in [*TALKS, called]:
        (found,), _ = read(folder, talk, tools)
        expected = theirs.apply_chat_template(
            talk,
            tools=tools,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        np.testing.assert_array_equal(found.ids, expected["input_ids"])
        np.testing.assert_array_equal(found.spoken, expected["assistant_masks"])
        assert 0 < sum(expected["assistant_masks"]) <= len(found.ids)


@pytest.mark.parametrize("name", BY_HAND)
def test_texts_without_marks_are_theirs(name, tokenizers_of):
    theirs, folder = tokenizers_of
    theirs.chat_template = BY_HAND[name][0]
    theirs.save_pretrained(folder)
    for talk in [
        TALKS[0],
        TALKS[1],
        *([[SYSTEM, *TALK]] if name not in ("Mistral", "Gemma") else []),
    ]:
        (found,), template = read(folder, talk)
        expected = theirs.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
        np.testing.assert_array_equal(found.ids, expected)
        for prompt in (False, True):
            text = theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt)
            messages = find_messages({"messages": talk}, None, "x").messages
            assert template.render(messages, prompt=prompt) == text
            ids = theirs.apply_chat_template(
                talk, tokenize=True, add_generation_prompt=prompt, return_dict=True
            )["input_ids"]
            tokenizer = load_tokenizer(str(folder))
            assert write_prompt(template, tokenizer, talk, add_generation_prompt=prompt) == ids


def test_a_template_that_rewrites_turns_is_theirs(tokenizers_of):
    """Each text is the conversation up to one turn."""
    theirs, folder = tokenizers_of
    theirs.chat_template = THINKING
    theirs.save_pretrained(folder)
    talk = [TALK[0], {"role": "assistant", "content": "<think>a</think>b"}, *TALK[2:]]
    found, _ = read(folder, talk)
    for one, count in zip(found, (2, 4), strict=True):
        expected = theirs.apply_chat_template(talk[:count], tokenize=True, return_dict=True)
        np.testing.assert_array_equal(one.ids, expected["input_ids"])
