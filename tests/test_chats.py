"""Conversations: their formats, templates, the assistant's tokens, and the loss on these alone."""

import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from moejax.commands.data_show import draw_rows, write_rows
from moejax.config import Config, ConfigError, DataConfig, RunConfig
from moejax.config.change import changed
from moejax.data.chat.choose import list_models
from moejax.data.chat.conversations import ChatFormat, encode, pack, unpack
from moejax.data.chat.find_template import NAMED, find_template
from moejax.data.chat.messages import Talk, find_messages
from moejax.data.chat.template import Template, TemplateError
from moejax.data.documents import Conversation
from moejax.data.kinds.records import Bad
from moejax.data.pipeline import train_batches, validation_batches
from moejax.data.seen import list_rows
from moejax.data.sources import open_documents
from moejax.data.tokenizer import ByteTokenizer, load_tokenizer
from moejax.inference.kept_files import copy_template, find_text, keep_files
from moejax.models.decoder import DecoderLM
from moejax.models.initial_params import init_params
from moejax.runs.run_directory import RunDirectory
from moejax.train.finish import begin_sample
from moejax.train.forward import batch_sums, count_targets, list_counted

BYTES = ByteTokenizer()
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": "Hi, é?"},
    {"role": "assistant", "content": "Hello "},
    {"role": "user", "content": "And now"},
    {"role": "assistant", "content": "Bye"},
]
CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' +"
    " '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content ="
    " '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') !="
    " (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate user/assistant') }}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{"
    " raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ m['role'] + ':' }}{% if m['role'] == 'assistant' and not loop.last"
    " %}{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not"
    " supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant')"
    " %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{"
    " '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor"
    " %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PHI3 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' +"
    " '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}{% elif"
    " (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}{% endif %}{%"
    " endfor %}"
)
LLAMA2 = (
    "{% for message in messages %}{% set content = message['content'] %}{% if message['role'] =="
    " 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] =="
    " 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif"
    " %}{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' +"
    " message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' +"
    " message['content'] + eos_token }}{% elif message['role'] == 'system' %}{{ message['content']"
    " + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
OLMOE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{"
    " '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{"
    " '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not"
    " loop.last %}{{ '<|assistant|>\n' + message['content'] + eos_token + '\n' }}{% else %}{{"
    " '<|assistant|>\n' + message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last"
    " and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def render(source, messages=TALK):
    """The texts that a template makes, and what the assistant has said in each."""
    found = list(Template(source, NAMES, "it").render_talk(Talk(messages, None)))
    return [(one.text, [one.text[a:b] for a, b in one.spoken]) for one in found]


BY_HAND = {
    "ChatML": (
        CHATML,
        "<|im_start|>user\nHi, é?<|im_end|>\n<|im_start|>assistant\n[Hello <|im_end|>\n]"
        "<|im_start|>user\nAnd now<|im_end|>\n<|im_start|>assistant\n[Bye<|im_end|>\n]",
    ),
    "chatml": (
        NAMED["chatml"],
        "<|im_start|>user\nHi, é?<|im_end|>\n<|im_start|>assistant\n[Hello <|im_end|>]\n"
        "<|im_start|>user\nAnd now<|im_end|>\n<|im_start|>assistant\n[Bye<|im_end|>]\n",
    ),
    "Llama 3": (
        LLAMA3,
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi, é?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[Hello<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd now<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[Bye<|eot_id|>]",
    ),
    "Mistral": (
        MISTRAL,
        "<s>{INST} Hi, é? {/INST}[Hello </s>]{INST} And now {/INST}[Bye</s>]",
    ),
    "plain": (
        NAMED["plain"],
        "User: Hi, é?\nAssistant: [Hello </s>]\nUser: And now\nAssistant: [Bye</s>]\n",
    ),
}
BY_HAND |= {
    "Zephyr": (
        ZEPHYR,
        "<|user|>\nHi, é?</s>\n<|assistant|>\n[Hello </s>\n]"
        "<|user|>\nAnd now</s>\n<|assistant|>\n[Bye</s>\n]",
    ),
    "Gemma": (
        GEMMA,
        "<s><start_of_turn>user\nHi, é?<end_of_turn>\n<start_of_turn>model\n[Hello<end_of_turn>\n]"
        "<start_of_turn>user\nAnd now<end_of_turn>\n<start_of_turn>model\n[Bye<end_of_turn>\n]",
    ),
    "Phi-3": (
        PHI3,
        "<s><|user|>\nHi, é?<|end|>\n<|assistant|>\n[Hello <|end|>\n]"
        "<|user|>\nAnd now<|end|>\n<|assistant|>\n[Bye<|end|>\n]",
    ),
    "Llama 2": (
        LLAMA2,
        "<s>{INST} Hi, é? {/INST}[ Hello </s>]<s>{INST} And now {/INST}[ Bye </s>]",
    ),
    "DeepSeek-V2": (
        DEEPSEEK,
        "<s>User: Hi, é?\n\nAssistant:[ Hello </s>]User: And now\n\nAssistant:[ Bye</s>]",
    ),
    "OLMoE": (
        OLMOE,
        "<s><|user|>\nHi, é?\n<|assistant|>\n[Hello </s>]\n"
        "<|user|>\nAnd now\n<|assistant|>\n[Bye</s>]",
    ),
}
BY_HAND["llama3"] = (NAMED["llama3"], BY_HAND["Llama 3"][1])


@pytest.mark.parametrize("name", BY_HAND)
def test_a_template_by_hand(name):
    """In brackets is what the assistant has said."""
    source, marked = BY_HAND[name]
    spoken = [part.split("]")[0] for part in marked.split("[")[1:]]
    text = marked.replace("[", "").replace("]", "").replace("{", "[").replace("}", "]")
    assert render(source) == [(text, spoken)]
    template = Template(source, NAMES, "it")
    before = template.render(TALK[:1], prompt=True)
    assert text.startswith(before) and text[len(before) :].strip().startswith("Hello")


def test_a_template_that_rewrites_earlier_turns_gives_a_text_for_each_turn():
    talk = [dict(one) for one in TALK]
    talk[1]["content"] = "<think>hm</think>Hello"
    assert render(THINKING, talk) == [
        ("user:Hi, é?\nassistant:<think>hm</think>Hello\n", ["<think>hm</think>Hello\n"]),
        ("user:Hi, é?\nassistant:Hello\nuser:And now\nassistant:Bye\n", ["Bye\n"]),
    ]
    assert len(render(THINKING)) == 1


def test_marks_in_macros_and_variables():
    source = (
        "{% macro say(m) %}{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}"
        "{% for m in messages %}{% set x = say(m) if m.role == 'assistant' else m.content %}"
        "<{{ x }}>{% endfor %}"
    )
    assert render(source) == [("<Hi, é?><Hello ><And now><Bye>", ["Hello ", "Bye"])]


REFUSED = {
    "{{ messages.__class__.__mro__ }}": "calls what it may not",
    "{{ messages.append(1) }}": "calls what it may not",
    "{{ strftime_now.__self__.__class__() }}": "calls what it may not",
    "{% set ns = namespace(__init__=1) %}": "calls what it may not",
    "{% include '/etc/passwd' %}": "fails: no loader",
    "{% import 'os' as os %}": "fails: no loader",
    "{{ raise_exception('no such role') }}": "fails: no such role",
    "{{ '{:>{w}}'.format('a', w=10**15) }}": "fails: MemoryError",
    "{{ messages[7].content }}": "fails: list object has no element 7",
    "{{ 1 // 0 }}": "fails: integer division",
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A{% endif %}":
        "in another way than it begins it",
    "{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x | length }}":
        "looks at the text between its own marks",
}  # fmt: skip


@pytest.mark.parametrize("source", REFUSED)
def test_a_template_that_fails_or_calls_what_it_may_not(source):
    with pytest.raises(TemplateError, match=REFUSED[source]):
        render(source)


def test_no_template_at_all():
    with pytest.raises(ConfigError, match="it, line 1 is no chat template: Encountered unknown"):
        render("{% nonsense %}")


def test_what_templates_are_given():
    source = "{{ {'a': '<é>'} | tojson }}{{ strftime_now('%d %b %Y') }}{{ dict(a=1) }}{{ tools }}"
    source += "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    template = Template(source, {}, "it")
    assert template.render([], [1]) == '{"a": "<é>"}26 Jul 2024{\'a\': 1}[1]01'


PARTS = [one | {"content": [{"type": "text", "text": one["content"]}]} for one in TALK]
"""The same with contents in parts, as messages with images have them."""


@pytest.mark.parametrize(
    "body",
    [
        "{{ m.content }}",
        "{% if m.content is string %}{{ m.content }}{% endif %}",
        "{% for part in m.content %}{{ part.text }}{% endfor %}",
        "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}",
    ],
)
def test_texts_in_parts_are_texts(body):
    template = Template("{% for m in messages %}" + body + ";{% endfor %}", {}, "it")
    said = "Hi, é?;Hello ;And now;Bye;"
    assert template.render(TALK) == template.render(PARTS) == said
    two = [{"role": "user", "content": [{"text": "a"}, {"text": "b"}]}]
    assert template.render(two) == "ab;"


def test_the_usual_formats_are_the_same_conversation():
    sharegpt = [
        {"from": {"user": "human", "assistant": "gpt"}[one["role"]], "value": one["content"]}
        for one in TALK
    ]
    values = (
        {"messages": TALK, "id": 7},
        {"conversations": sharegpt},
        {"prompt": TALK[:3], "completion": TALK[3:]},
        TALK,
    )
    for value in values:
        assert find_messages(value, None, "x") == Talk(TALK, None)
    assert find_messages({"a": {"b": TALK}, "tools": [1]}, "a.b", "x") == Talk(TALK, [1])
    both = {"prompt": TALK[0]["content"], "completion": TALK[1]["content"]}
    assert find_messages(both, None, "x") == Talk(TALK[:2], None)


U, A = TALK[:2]
BAD = {
    '{"text": "x"}': "no field `messages` or `conversations`, nor .* It has: text.",
    '{"messages": []}': "conversation without a message",
    '{"messages": "hello"}': "'hello' where a list of messages",
    '{"messages": null}': "None where a list of messages",
    "17": "17 where a list of messages",
    json.dumps({"messages": [U]}): "without an assistant",
    json.dumps({"messages": [U, A | {"role": "alien"}]}): "its 2nd, of the unknown role 'alien'",
    json.dumps({"messages": [U, {"role": "assistant"}]}): "its 2nd, without a `content`",
    json.dumps({"messages": [U, {"content": "x"}]}): "its 2nd, without a `role`. It has: content",
    json.dumps({"messages": [U, A | {"content": 3}]}): "whose content is 3, not a text",
    json.dumps({"messages": [A | {"content": [{"type": "image"}]}]}): "some part is no text",
    json.dumps({"messages": [U, 3]}): "that is 3: an object",
    json.dumps({"messages": [U, A | {"content": "a<|endoftext|>"}]}): "the name of a control token",
    json.dumps({"messages": [U, A | {"content": "\ud800"}]}): "half of a pair of surrogates",
    json.dumps({"messages": [U, {"role": "assistant", "tool_calls": [1]}]}): "template .* fails",
    "{": "is not JSON",
    '{"messages": ' + 400 * "[" + 400 * "]" + "}": "is nested more than 64 deep",
}


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def settings(path, **changes):
    kept = {"directory": str(path.parent if hasattr(path, "parent") else path) + "/kept"}
    base = {"train": str(path), "chat_template": "plain", "sequence_length": 96, "batch_size": 2}
    return DataConfig(**{**base, **kept, "shuffle_window": 8, **changes})


@pytest.mark.parametrize("line", BAD)
def test_a_bad_conversation_is_named_with_its_place_or_skipped(line, tmp_path):
    good = json.dumps({"messages": TALK})
    path = tmp_path / "a.jsonl"
    write(path, [good] * 22 + [line])
    with pytest.raises(ConfigError, match=rf"a\.jsonl:23 .*{BAD[line]}.*--data.skip-bad True"):
        open_documents(settings(path), BYTES)
    corpus = open_documents(settings(path, skip_bad=True), BYTES)
    assert corpus.counts["bad_documents"] == 1 and "a.jsonl:23" in corpus.bad
    assert len(corpus.train) + len(corpus.validation) == 22


def test_formats_of_files_give_the_same_conversations(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    talks = [[SYSTEM, *TALK][: 3 + 2 * (i % 2)] + [SYSTEM] * (i % 3) for i in range(30)]
    rows = [{"messages": talk, "n": i} for i, talk in enumerate(talks)]
    files = {name: tmp_path / name for name in ("a.jsonl", "a.json", "a.parquet", "a.arrow")}
    write(files["a.jsonl"], map(json.dumps, rows))
    files["a.json"].write_text(json.dumps(rows))
    table = pa.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, files["a.parquet"])
    with pa.ipc.new_file(files["a.arrow"], table.schema) as writer:
        writer.write_table(table)
    found = [open_documents(settings(file), BYTES) for file in files.values()]
    texts = [[BYTES.show(one.train[i].ids) for i in range(len(one.train))] for one in found]
    assert texts[0][1].startswith("System: Be brief.\nUser: Hi") and len(texts[0]) == 29
    assert all(one == texts[0] for one in texts)


def test_rows_have_whole_conversations_and_the_assistants_targets_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    talks = [TALK[: 2 + 2 * (i % 2)] for i in range(40)]
    write(path, [json.dumps({"messages": talk}) for talk in talks])
    config = settings(path, validation_percent=50.0, batch_size=4)
    corpus = open_documents(config, BYTES)
    batch = next(train_batches(corpus.train, BYTES, config, batch_size=4))
    segments = batch["segments"]
    texts = {render(NAMED["plain"], talk)[0][0] for talk in (TALK, TALK[:2])}
    texts = {text.replace("</s>", "<|endoftext|>") for text in texts}
    for row in range(4):
        for segment in range(1, segments[row].max() + 1):
            here = segments[row] == segment
            inputs, targets = batch["inputs"][row, here], batch["targets"][row, here]
            assert BYTES.show([*inputs, targets[-1]]) in texts
            assert batch["positions"][row, here].tolist() == list(range(len(inputs)))
            counted = batch["counted"][row, here] > 0
            said = BYTES.show(targets[counted])
            assert said in ("Hello <|endoftext|>Bye<|endoftext|>", "Hello <|endoftext|>")
    assert segments.max() > 1 and not batch["counted"][segments == 0].any()
    letters = (batch["counted"] > 0) & (batch["targets"] < 256)
    assert (batch["bytes"] == letters).all()
    held = list(validation_batches(corpus.validation, BYTES, config, batch_size=4))
    assert held[0]["counted"].sum() > 0


def test_too_long_conversations(tmp_path):
    path = tmp_path / "a.jsonl"
    long, late = [U, A | {"content": "A" * 99}], [U | {"content": "U" * 99}, A]
    talks = [[U, A]] * 20 + [long, late]
    write(path, [json.dumps({"messages": talk}) for talk in talks])
    held = {"validation": write(tmp_path / "b.jsonl", [json.dumps({"messages": TALK})])}
    for choice, count, lost in (("cut", 21, 1), ("drop", 20, 2)):
        corpus = open_documents(settings(path, too_long=choice, **held), BYTES)
        assert len(corpus.train) == count and len(corpus.validation) == 1
        assert corpus.counts == {"long_conversations": 2, "lost_conversations": lost}
        assert f"({2 - lost} cut, {lost} left out)" in corpus.description
        assert max(len(corpus.train[i].ids) for i in range(count)) == (97 if lost == 1 else 33)


def test_a_run_goes_on_with_the_same_conversations_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [json.dumps({"messages": TALK})] * 22)

    def open_stream(**changes):
        config = settings(path, **changes)
        train = open_documents(config, BYTES).train
        return train_batches(train, BYTES, config, batch_size=2)

    stream = open_stream()
    first, place = next(stream), stream.get_state()
    second = next(stream)
    resumed = open_stream()
    assert (next(resumed)["counted"] == first["counted"]).all()
    resumed.set_state(json.loads(json.dumps(place)))
    after = next(resumed)
    assert all((x_BN == second[name]).all() for name, x_BN in after.items())
    for change in ({"chat_template": "chatml"}, {"too_long": "drop"}):
        with pytest.raises(ConfigError, match=f"{next(iter(change))} was "):
            open_stream(**change).set_state(place)


def test_few_conversations_are_never_cut_in_two(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [json.dumps({"messages": TALK})])
    with pytest.raises(ConfigError, match="Give --data.validation"):
        open_documents(settings(path), BYTES)


def test_texts_and_conversations_are_told_apart(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [json.dumps({"messages": TALK})])
    with pytest.raises(ConfigError, match="It has: messages. Of conversations, give --data.chat-t"):
        open_documents(settings(path, chat_template=None), BYTES)
    text = write(tmp_path / "a.txt", ["x"])
    with pytest.raises(ConfigError, match="a.txt is text; conversations are read from"):
        open_documents(settings(text), BYTES)
    for wrong in ({"train": None}, {"train": "tfds:lm1b"}):
        with pytest.raises(ConfigError, match="reads conversations from files"):
            settings(path, **wrong)


def test_which_template_is_meant(tmp_path):
    with pytest.raises(ConfigError, match="no chat template of its own.*or one of chatml, llama3"):
        find_template("auto", BYTES)
    with pytest.raises(ConfigError, match="no such file. Write a path, auto .* chatml, llama3"):
        find_template(str(tmp_path / "none"), BYTES)
    (tmp_path / "own.jinja").write_text("{{ eos_token }}")
    assert find_template(str(tmp_path / "own.jinja"), BYTES).render([]) == "<|endoftext|>"

    class Other(ByteTokenizer):
        folder = tmp_path

    said = {"chat_template": "a{{ bos_token }}", "bos_token": {"content": "<b>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    assert find_template("auto", Other()).render([]) == "a<b>"
    said["chat_template"] = [{"name": "default", "template": "b{{ eos_token }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    assert find_template("auto", Other()).render([]) == "b"
    (tmp_path / "chat_template.jinja").write_text("c")
    assert find_template("auto", Other()).render([]) == "c"


def test_the_models_own_template_may_lie_in_the_model_that_a_run_begins_from(tmp_path):
    """What the run itself has kept comes first, then a run's folder, then the model's."""
    data = DataConfig(train="x", chat_template="auto")
    config = Config(data=data, run=RunConfig(init_from=str(tmp_path / "model")))
    places = [tmp_path / "model", tmp_path / "model" / "tokenizer", tmp_path / "kept"]
    for place in places:
        place.mkdir()
        (place / "chat_template.jinja").write_text(f"{place.name}")
        models = list_models(config, tmp_path / "kept")
        assert find_template("auto", BYTES, models).render([]) == place.name
    (tmp_path / "other").mkdir()
    said = {"chat_template": "a{{ bos_token }}", "bos_token": "<b>"}
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps(said))
    other = changed(config, {"run.init_from": str(tmp_path / "other")})
    assert find_template("auto", BYTES, list_models(other)).render([]) == "a<b>"
    nothing = changed(config, {"run.init_from": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"tokenizer_config.json in .*/none/tokenizer or .*/none"):
        find_template("auto", BYTES, list_models(nothing))


def test_a_run_on_bytes_keeps_its_template_for_those_who_talk_to_it(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}:")
    data = DataConfig(train="x", chat_template="auto")
    init = RunConfig(init_from=str(tmp_path / "model"), sample_prompt="Hi")
    config = Config(data=data, run=init)
    with RunDirectory(tmp_path / "run") as run:
        keep_files(run, config, BYTES)
    copy_template(run.path, tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages[0].content }}:"
    before, prompt, ends = begin_sample(config, BYTES, run)
    assert before == BYTES.show(prompt) == "Hi:" and ends == {256}
    plain = changed(config, {"data.chat_template": "plain"})
    assert begin_sample(plain, BYTES, run)[0] == "User: Hi\nAssistant: "
    text = changed(config, {"data.chat_template": None})
    before, prompt, ends = begin_sample(text, BYTES, run)
    assert before == "Hi" and prompt.tolist() == [256, *b"Hi"]


def test_a_run_keeps_the_template_and_finds_its_file_again(tmp_path, monkeypatch):
    from tokenizers import Tokenizer, models

    (tmp_path / "model").mkdir()
    words = {"[UNK]": 0, "</s>": 1}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.save(str(tmp_path / "model" / "tokenizer.json"))
    (tmp_path / "model" / "chat_template.jinja").write_text("the model's")
    (tmp_path / "own.jinja").write_text("my own")
    monkeypatch.chdir(tmp_path)
    kept = {}
    for name in ("own.jinja", "chatml", "auto"):
        data = settings(
            tmp_path / "x.jsonl", tokenizer="model", chat_template=name, sequence_length=128
        )
        with RunDirectory(tmp_path / f"run {name}") as run:
            keep_files(run, Config(data=data), load_tokenizer("model"))
        kept[name] = (run.tokenizer / "chat_template.jinja").read_text()
        (run.path / "summary.json").write_text(json.dumps({"folder": str(tmp_path)}))
        monkeypatch.chdir("/")
        copy = run.tokenizer / "chat_template.jinja"
        assert find_text(run.path, data).chat_template == str(copy)
        copy.unlink()  # as in older runs
        there = find_text(run.path, data).chat_template
        assert there == (str(tmp_path / name) if name == "own.jinja" else name)
        monkeypatch.chdir(tmp_path)
    assert kept == {"own.jinja": "my own", "chatml": NAMED["chatml"], "auto": "the model's"}


def test_tokens_are_kept_as_they_are():
    one = Conversation(
        *(np.asarray(x, np.int32) for x in ([3, 0, 2**31 - 1], [0, 7, 1], [0, 1, 1]))
    )
    for there, back in zip(one, unpack(pack(one)), strict=True):
        assert there.tolist() == back.tolist() and back.dtype == np.int32
    rendered = next(Template(NAMED["plain"], NAMES, "it").render_talk(Talk(TALK, None)))
    found = encode(rendered, BYTES)
    assert found.target_bytes.sum() == len(rendered.text.encode())


def test_another_template_has_other_tokens():
    """What is kept belongs to template, names, field and tokenizer, and not to the length."""
    base = {"tokenizer": BYTES, "field": None, "length": 8, "too_long": "cut"}
    plain = Template("x", NAMES, "it")
    formats = [
        ChatFormat(template=plain, **base),
        ChatFormat(template=Template("y", NAMES, "it"), **base),
        ChatFormat(template=Template("x", {}, "it"), **base),
        ChatFormat(template=plain, **base | {"field": "a"}),
    ]
    assert len({one.fingerprint for one in formats}) == 4
    assert ChatFormat(template=plain, **base | {"length": 9}).fingerprint == formats[0].fingerprint
    assert isinstance(formats[0].encode_value(3, "x")[0], Bad)


def test_targets_further_on_count_if_the_assistant_said_them(batch):
    """Of texts all count."""
    for one, other in zip(
        list_counted(batch, 2),
        list_counted(batch | {"counted": np.ones((8, 16), np.int32)}, 2),
        strict=True,
    ):
        assert (one == other).all()
    counted = np.arange(128).reshape(8, 16) % 3 == 0
    chats = batch | {"counted": counted.astype(np.int32)}
    for count, found in enumerate(list_counted(chats, 2)):
        expected = np.zeros((8, 16), bool)
        for row, at in np.ndindex(8, 16 - count):
            same = batch["segments"][row, at] == batch["segments"][row, at + count] > 0
            expected[row, at] = same and counted[row, at + count]
        assert (np.asarray(found) == expected).all()
        assert count_targets(chats, 2)[count] == expected.sum()


@pytest.mark.slow
def test_the_masked_loss_is_the_loss_of_the_parts(tiny, batch):
    """Two masks that make up all targets: their nats and gradients are those of all; and what does
    not count has no part in it.
    """
    tiny = changed(tiny, {"model.num_layers": 1})
    model = DecoderLM(tiny.model, 257)
    params = jax.jit(lambda: init_params(model, tiny))()

    @jax.jit
    def run(params, counted_BN):
        def loss(params):
            given = batch | {"counted": counted_BN}
            sums = batch_sums(model, params, None, given, jax.random.key(0))[0]
            return sums.loss, sums

        return jax.grad(loss, has_aux=True)(params)

    counted = (np.arange(128).reshape(8, 16) % 3 == 0).astype(np.int32)
    whole, one, other = (run(params, mask) for mask in (counted * 0 + 1, counted, 1 - counted))
    assert whole[1].targets == (batch["segments"] > 0).sum() == one[1].targets + other[1].targets
    np.testing.assert_allclose(one[1].nats + other[1].nats, whole[1].nats, rtol=1e-5)
    # Routers count prompts, too, as every family's code does: no mask of the loss reaches them.
    chex.assert_trees_all_equal(whole[1].router, one[1].router)
    for a, b, c in zip(*(jax.tree.leaves(x[0]) for x in (whole, one, other)), strict=True):
        np.testing.assert_allclose(a, b + c, atol=1e-5)


SLY = [{"role": "user", "content": "<b>\x1b[31m"}, A]


@pytest.mark.slow
def test_data_show(tmp_path, run_command):
    path, page = tmp_path / "a.jsonl", tmp_path / "page.html"
    write(path, [json.dumps({"messages": talk}) for talk in [TALK, SLY] * 20])
    given = ["--config", QUICKSTART, "--data.train", path, "--data.chat-template", "plain"]
    given += ["--data.directory", path.parent / "kept", "--data.validation-percent", "50"]
    given += ["--data.batch-size", "4", "--data.prefetch", "1", "--data.shuffle-window", "4"]
    found = run_command("data", "show", *given, "--rows", "2")
    assert found.returncode == 0 and "20 documents to train on" in found.stdout
    assert "User: Hi, é?\nAssistant: [[Hello <|endoftext|>]]\nUser: And now\n" in found.stdout
    assert "User: <b>\ufffd[31m\n" in found.stdout and "\x1b" not in found.stdout
    assert "row 1: " in found.stdout and "row 2: " not in found.stdout
    found = run_command("data", "show", *given, "--held-out", "--output", page)
    assert found.returncode == 0 and "Hello &lt;|endoftext|&gt;</span>" in page.read_text("utf-8")


def test_rows_in_colours_and_as_a_page(tmp_path):
    """Of a text all is learned but its beginning."""
    path = tmp_path / "a.jsonl"
    write(path, [json.dumps({"messages": talk}) for talk in [TALK, SLY] * 10])
    config = settings(path, validation_percent=50.0)
    for documents, said in (
        (
            open_documents(config, BYTES).train,
            "Assistant: \x1b[0m\x1b[32mHello <|endoftext|>\x1b[0m",
        ),
        ([b"abc"], "\x1b[2m<|endoftext|>\x1b[0m\x1b[32mabc<|endoftext|>\x1b[0m"),
    ):
        (batch, *_) = validation_batches(documents, BYTES, config, batch_size=8)
        rows = list(list_rows(batch, BYTES))
        assert sum(row.padding for row in rows) == (batch["segments"] == 0).sum()
        learned = batch.get("counted", batch["segments"] > 0)
        assert sum(row.learned for row in rows) == (learned > 0).sum()
        text = write_rows("it", rows, True)
        assert said in text and "[[" not in text
        html = draw_rows("it", "it", rows)
        assert 'class="learned" title="' in html and "<b>" not in html
