"""`moejax generate --chat`: which messages are asked, and a conversation on a terminal."""

import builtins
import io
import json
import sys
from pathlib import Path

import pytest
from test_chat_prompts import BYTES, PLAIN, SYSTEM, A, U

from moejax.commands.chat import Talking, converse, read_conversations, shorten
from moejax.commands.generate import GenerateSettings, collect_talks, texts_json
from moejax.commands.main import run
from moejax.config import ConfigError
from moejax.config.errors import UserError
from moejax.inference.generation import Generated
from moejax.inference.growing_text import Continuation


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_messages_come_from_flags_lines_and_conversations(tmp_path):
    def ask(**given):
        settings = GenerateSettings(path=tmp_path, chat=True, **given)
        return [talk.messages for talk in collect_talks(settings)]

    lines = write(tmp_path / "a.txt", "one", "two")
    user = [{"role": "user", "content": text} for text in ("zero", "one", "two")]
    assert ask(prompt=("zero",), prompt_file=lines) == [[one] for one in user]
    assert ask(prompt=("zero",), system="Be brief.") == [[SYSTEM, user[0]]]
    talks = [{"messages": [U, A, U]}, [SYSTEM | {"content": "Its own."}, U], {"messages": [U]}]
    for name in ("a.jsonl", "a.json"):
        whole = json.dumps(talks) if name == "a.json" else None
        file = write(tmp_path / name, *([whole] if whole else map(json.dumps, talks)))
        found = ask(prompt=("zero",), prompt_file=file, system="Be brief.")
        assert found == [[SYSTEM, user[0]], [SYSTEM, U, A, U], talks[1], [SYSTEM, U]]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "a.jsonl:2 is not JSON"),
        ('{"text": "x"}', "a.jsonl:2 has no field `messages`"),
        ('{"messages": []}', "a.jsonl:2 is a conversation without a message"),
        ('{"messages": [{"role": "x", "content": ""}]}', "the unknown role 'x'"),
        (json.dumps([U, A]), "a.jsonl:2 ends with what the assistant has said"),
    ],
)
def test_a_file_of_conversations_that_cannot_be_answered_is_refused(tmp_path, line, why):
    file = write(tmp_path / "a.jsonl", json.dumps([U]), line)
    with pytest.raises(ConfigError, match=why):
        read_conversations(file, None)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--chat", "no prompt: give --prompt TEXT, .*; or begin on a terminal"),
        ("--chat --prompt-file a.jsonl", "--prompt-file a.jsonl: there is no such file"),
        ("--chat --prompt-file empty.jsonl", "empty.jsonl has no conversation"),
        ("--chat --prompt-file cut.parquet", "cut.parquet is no Parquet file"),
        ("--chat --prompt-file x.jsonl.zst", "is not compressed as its name says"),
        ("--prompt x --system y", "--system y has no effect without --chat: give that, too"),
        ("--prompt x --chat-template plain", "--chat-template plain has no effect without --chat"),
        ("--chat --prompt x --special-tokens", "--special-tokens True has no effect with --chat"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(tmp_path, monkeypatch, words, why):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    write(tmp_path / "empty.jsonl")
    write(tmp_path / "cut.parquet", "x")
    write(tmp_path / "x.jsonl.zst", "x")
    with pytest.raises(UserError, match=why):
        run(["generate", "nowhere", *words.split()])


def test_answers_as_json():
    texts = [Continuation(text=text, ids=[1], ended="end") for text in ("a", "b")]
    done = Generated(continuations=texts, first_seconds=1.0, tokens_per_second=None)
    found = texts_json(PLAIN, [Talking([SYSTEM, U]), "Hi"], done)["texts"]
    rest = {"ids": [1], "ended": "end"}
    assert found[0] == {"messages": [SYSTEM, U], "text": "a"} | rest
    assert found[1] == {"prompt": "Hi", "text": "b"} | rest


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_conversation_needs_a_terminal_and_no_prompt(monkeypatch):
    path = Path("x")
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert GenerateSettings(path=path, chat=True).converses
    assert not GenerateSettings(path=path, chat=True, prompt=("a",)).converses
    with pytest.raises(ConfigError, match="there is no prompt: give --prompt TEXT, or"):
        GenerateSettings(path=path)
    with pytest.raises(ConfigError, match="--json True has no effect with --chat on a terminal"):
        run(["generate", "nowhere", "--chat", "--json"])


def talk(monkeypatch, lines, answer, window=None, system=None):
    """What a model is given after these lines of a user."""
    asked, given = [], iter(lines)

    def read(_):
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    def take(ids):
        asked.append(BYTES.show(ids))
        return answer

    monkeypatch.setattr(builtins, "input", read)
    converse(PLAIN, window, system, take)
    return asked


def test_a_conversation_goes_on_with_all_that_was_said(monkeypatch):
    first, second = talk(monkeypatch, ["Hi", " ", "And?"], "Yes.", system="Be brief.")
    assert first == "System: Be brief.\nUser: Hi\nAssistant: "
    assert second == f"{first}Yes.<|endoftext|>\nUser: And?\nAssistant: "


def test_the_first_turns_leave_a_window_that_is_full(monkeypatch, capsys):
    """The system's message stays, and so does the last one, however long it is."""
    asked = talk(monkeypatch, ["one", "two", "three"], "Yes.", window=50, system="S")
    assert asked[1].startswith("System: S\nUser: two") and "three" in asked[2]
    assert "(the first 2 messages are left out: it sees 50 tokens)" in capsys.readouterr().err
    messages, ids = shorten(PLAIN, [SYSTEM, U], 3)
    assert messages == [SYSTEM, U] and len(ids) > 3


def test_a_message_that_is_refused_begins_a_new_conversation(monkeypatch, capsys):
    asked = talk(monkeypatch, ["Hi", "a <|endoftext|>", "Hi"], "Yes.")
    assert asked[0] == asked[1] and len(asked) == 2
    assert "the name of a control token" in capsys.readouterr().err
