"""Messages as the tokens of a prompt, by a model's own chat template, and where its answer ends."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moejax.config.errors import ConfigError
from moejax.data.chat.conversations import find_problem, match_control
from moejax.data.chat.messages import find_talk
from moejax.data.chat.template import Template, TemplateError
from moejax.data.check_tokens import check_known
from moejax.data.kinds.records import Bad
from moejax.data.tokenizer import Tokenizer
from moejax.inference.open_model import OpenModel

_ANSWER = "moejax-answer"
"""A message that no template changes."""


def chat_prompt(
    model: OpenModel,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    *,
    tools: Sequence[Any] | None = None,
    place: str = "the conversation",
) -> list[int]:
    """The tokens of a conversation as ``model`` has learned to read it. The rest is as in
    ``write_prompt``; ``ConfigError`` also for a model without a template, and for tokens beyond its
    embedding.
    """
    assert model.tokenizer is not None  # callers check it
    ids = write_prompt(
        model.template,
        model.tokenizer,
        messages,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        place=place,
    )
    check_known(np.asarray(ids), model.vocab_size, model.tokenizer)
    return ids


def write_prompt(
    template: Template,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Any] | None = None,
    place: str = "the conversation",
) -> list[int]:
    """The tokens of a conversation as a template writes it, at the end with what stands before an
    answer (``add_generation_prompt``). Nothing else is put before them.

    A message is a dict with ``role`` (system, developer, user, assistant, tool, function) and
    ``content``, a text or a list of parts with a ``text``. ``tools`` are given to the template.
    Raises ``ConfigError``, whose message begins with ``place``, for messages that are none or that
    name a control token, and for a template that fails.
    """
    talk = find_talk([dict(one) if isinstance(one, Mapping) else one for one in messages], None, "")
    if isinstance(talk, Bad):
        raise ConfigError(f"{place} {talk.why}")
    talk = talk._replace(tools=list(tools) if tools else None)
    if (wrong := find_problem(talk, match_control(tokenizer))) is not None:
        raise ConfigError(f"{place} {wrong}")
    try:
        text = template.render(talk.messages, talk.tools, prompt=add_generation_prompt)
    except TemplateError as error:
        raise ConfigError(
            f"{place} has no text: the chat template ({template.at}) {error}"
        ) from error
    return [int(token) for token in tokenizer.encode_rendered(text)[0]]


def find_turn_ends(model: OpenModel) -> frozenset[int]:
    """The tokens that end an answer: those that end a text, and that of ``find_turn_end``. Raises
    ``ConfigError`` if the model has no template.
    """
    assert model.tokenizer is not None  # callers check it
    return model.ends | find_turn_end(model.template, model.tokenizer)


def find_turn_end(template: Template, tokenizer: Tokenizer) -> frozenset[int]:
    """The control token that a template writes after what an assistant has said, if it does."""
    control = match_control(tokenizer)
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = template.render(talk)
    except TemplateError:  # it wants more: a system message, say
        return frozenset()
    after = text[text.rfind(_ANSWER) + len(_ANSWER) :].lstrip() if _ANSWER in text else ""
    name = control.match(after) if control else None
    return frozenset() if name is None else frozenset([tokenizer.control[name[0]]])
