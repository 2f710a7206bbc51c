"""A chat template: Jinja in a sandbox, with what transformers gives templates.

A template is a program of whoever released the model. It sees the messages and nothing else: no
file, no import, no attribute that leads to Python itself; what it is given it cannot change.
``strftime_now`` gives one fixed day, as the same documents must always give the same batches.

Which characters the assistant has said:

* Where a template marks them (``{% generation %} ... {% endgeneration %}``), these.
* Else, for each of the assistant's turns, what the conversation up to and with it has more than the
  conversation before it with the generation prompt: what the model would have to say there, the end
  of its turn included. If a template writes earlier turns in another way once others follow (some
  leave out their reasoning), no text has all turns as the model is to say them: then each turn is a
  text of its own, with what came before it.

A content that is a list of parts with texts is given as one text, and the other way round to a
template that reads parts alone: some templates leave out what is not of the kind that they expect.
"""

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.data.chat.messages import Message, Talk

DAY = datetime.datetime(2024, 7, 26)
"""What ``strftime_now`` takes for now: Llama 3.1's own default."""
BEGIN, END = "\ufdd0", "\ufdd1"
"""Around what a template marks: no characters of any text (Unicode's noncharacters)."""
_PROBE = "moejax probe"
"""A text that a template writes as it is."""
_FIRST_SAFE = (3, 1, 6)
"""Of Jinja: its sandbox had holes before."""
_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

Span = tuple[int, int]
"""The first character, and the one after the last."""


class Rendered(NamedTuple):
    """A conversation as a text."""

    text: str
    spoken: list[Span]
    """What the assistant has said, in order."""


class TemplateError(Exception):
    """A template fails, or does what it may not; the message follows "its chat template"."""


class Template:
    """A compiled chat template. Raises ``ConfigError`` if it is none."""

    def __init__(self, source: str, names: Mapping[str, str], at: str) -> None:
        """``names``: those of special tokens (``bos_token``, ...), which templates print; ``at``:
        where the template is from.
        """
        self.source, self.names, self.at = source, dict(names), at
        self.has_marks = _MARKED.search(source) is not None
        _ = self._compiled  # fail now

    def __reduce__(self) -> tuple:
        """For another process, which compiles it itself."""
        return Template, (self.source, self.names, self.at)

    @cached_property
    def _compiled(self) -> Any:
        import_jinja2()
        try:
            return _make_environment(marks=False).from_string(self.source)
        except Exception as error:  # of Jinja, or of Python's compiler
            line = getattr(error, "lineno", None)
            where = f", line {line}" if line else ""
            raise ConfigError(
                f"{self.at}{where} is no chat template: {_shorten(error)}."
            ) from error

    @cached_property
    def _with_marks(self) -> Any:
        return _make_environment(marks=True).from_string(self.source)

    def render(self, messages: list[Message], tools: Any = None, prompt: bool = False) -> str:
        """The text of messages, at the end with what comes before an answer if ``prompt`` says so.
        Raises ``TemplateError``.
        """
        return self._run(self._compiled, messages, tools, prompt)

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether it writes contents only where they are lists of parts."""

        def writes(content: Any) -> bool:
            try:
                talk = [{"role": "user", "content": content}]
                return _PROBE in self._render(self._compiled, talk, None, False)
            except TemplateError:
                return False

        return not writes(_PROBE) and writes([{"type": "text", "text": _PROBE}])

    def _run(self, compiled: Any, messages: list[Message], tools: Any, prompt: bool) -> str:
        shape = _make_parts if self._reads_parts else _join_parts
        return self._render(compiled, [shape(one) for one in messages], tools, prompt)

    def _render(self, compiled: Any, messages: list[Message], tools: Any, prompt: bool) -> str:
        try:
            return compiled.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=prompt,
                **self.names,
            )
        except import_jinja2().exceptions.SecurityError as error:
            raise TemplateError(f"calls what it may not: {_shorten(error)}") from error
        except Exception as error:  # whatever a program may raise
            raise TemplateError(f"fails: {_shorten(error)}") from error

    def render_talk(self, talk: Talk) -> Iterator[Rendered]:
        """The texts of a conversation: one, if all the assistant's turns are in it as the model is
        to say them. Raises ``TemplateError``.
        """
        text = self.render(talk.messages, talk.tools)
        if self.has_marks:
            yield self._find_marked(text, talk)
            return
        turns = list(self._find_turns(talk))
        if all(text.startswith(one.text) for one in turns):
            yield Rendered(text, [one.spoken[0] for one in turns])
        else:
            yield from turns

    def _find_turns(self, talk: Talk) -> Iterator[Rendered]:
        """The conversation up to each of the assistant's turns, in which this turn is spoken."""
        for number, message in enumerate(talk.messages):
            if message["role"] != "assistant":
                continue
            before = self.render(talk.messages[:number], talk.tools, prompt=True)
            with_it = self.render(talk.messages[: number + 1], talk.tools)
            if not with_it.startswith(before):
                raise TemplateError(
                    "writes the assistant's turn in another way than it begins it for the model"
                    f" ({_shorten(with_it[-40:])!r} does not go on after {_shorten(before[-40:])!r}"
                    "): give one that marks it by {% generation %}."
                )
            yield Rendered(with_it, [(len(before), len(with_it))])

    def _find_marked(self, text: str, talk: Talk) -> Rendered:
        if BEGIN in text or END in text:
            raise TemplateError("is given the characters U+FDD0 or U+FDD1, which no text has.")
        marked = self._run(self._with_marks, talk.messages, talk.tools, False)
        spans: list[Span] = []
        at, depth, start = 0, 0, 0
        for part in re.split(f"([{BEGIN}{END}])", marked):
            if part == BEGIN:
                depth += 1
                start = at if depth == 1 else start
            elif part == END:
                depth -= 1
                spans += [(start, at)] * (depth == 0)
            else:
                at += len(part)
        if marked.replace(BEGIN, "").replace(END, "") != text:
            raise TemplateError("looks at the text between its own marks, {% generation %}.")
        return Rendered(text, spans)


def _join_parts(message: Message) -> Message:
    """A message whose content is a text, where it was a list of parts with texts."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return message | {"content": "".join(part["text"] for part in content)}


def _make_parts(message: Message) -> Message:
    """A message whose content is a list of parts, where it was a text."""
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return message | {"content": [{"type": "text", "text": content}]}


def import_jinja2() -> Any:
    """The library for templates. Raises ``ConfigError`` if it is missing."""
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError(
            "chat templates are read by jinja2, which is missing: pip install -e '.[chat]'"
        ) from error
    version = tuple(int(n) for n in re.findall(r"\d+", jinja2.__version__)[:3])
    check(
        version >= _FIRST_SAFE,
        f"chat templates are programs, and jinja2 {jinja2.__version__} lets them out of their"
        f" sandbox: pip install -e '.[chat]' brings a newer one.",
    )
    return jinja2


def _make_environment(marks: bool) -> Any:
    """Jinja as transformers has it for chat templates; with ``marks``, what stands between
    ``{% generation %}`` and ``{% endgeneration %}`` has ``BEGIN`` and ``END`` around it.
    """
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_mark", [])
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            said = caller()
            return f"{BEGIN}{said}{END}" if marks else said

    class Namespace(jinja2.utils.Namespace):
        def __init__(*args: Any, **values: Any) -> None:
            self, *others = args
            jinja2.utils.Namespace.__init__(self, _check_names(dict(*others, **values)))

        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(name, _check_names({name: value})[name])

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": DAY.strftime,
        "namespace": Namespace,
        "dict": _Dict(),
    }
    return environment


class _Dict:
    """Makes dicts, and leads to nothing else."""

    def __call__(self, *args: Any, **values: Any) -> dict:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


def _check_names(values: dict[str, Any]) -> dict[str, Any]:
    """Names that begin with `_` lead to Python itself."""
    for name in values:
        if str(name).startswith("_"):
            raise import_jinja2().exceptions.SecurityError(f"the name {name!r} is not allowed")
    return values


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, it leaves signs of HTML as they are."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise import_jinja2().exceptions.TemplateError(message)


def _shorten(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:197] + "..."
