"""Messages as the tokens of a prompt, by a model's own chat template, and where its answer ends."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moejax.config.errors import ConfigError
from moejax.data.chat.conversations import find_problem, match_control
from moejax.data.chat.messages import find_talk
from moejax.data.chat.template import TemplateError
from moejax.data.check_tokens import check_known
from moejax.data.kinds.records import Bad
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
    """The tokens of a conversation as the model has learned to read it, at the end with what stands
    before an answer (``add_generation_prompt``). Nothing else is put before them.

    A message is a dict with ``role`` (system, developer, user, assistant, tool, function) and
    ``content``, a text or a list of parts with a ``text``. ``tools`` are given to the template.
    Raises ``ConfigError``, whose message begins with ``place``, for messages that are none or that
    name a control token, and for a template that is missing or fails.
    """
    assert model.tokenizer is not None  # callers check it
    talk = find_talk([dict(one) if isinstance(one, Mapping) else one for one in messages], None, "")
    if isinstance(talk, Bad):
        raise ConfigError(f"{place} {talk.why}")
    talk = talk._replace(tools=list(tools) if tools else None)
    if (wrong := find_problem(talk, match_control(model.tokenizer))) is not None:
        raise ConfigError(f"{place} {wrong}")
    template = model.template
    try:
        text = template.render(talk.messages, talk.tools, prompt=add_generation_prompt)
    except TemplateError as error:
        raise ConfigError(
            f"{place} has no text: the chat template ({template.at}) {error}"
        ) from error
    ids = model.tokenizer.encode_rendered(text)[0]
    check_known(np.asarray(ids), model.vocab_size, model.tokenizer)
    return [int(token) for token in ids]


def find_turn_ends(model: OpenModel) -> frozenset[int]:
    """The tokens that end an answer: those that end a text, and the control token that the model's
    template writes after what an assistant has said, if it writes one. Raises ``ConfigError`` if
    there is no template.
    """
    assert model.tokenizer is not None  # callers check it
    control = match_control(model.tokenizer)
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = model.template.render(talk)
    except TemplateError:  # it wants more: a system message, say
        return model.ends
    after = text[text.rfind(_ANSWER) + len(_ANSWER) :].lstrip() if _ANSWER in text else ""
    name = control.match(after) if control else None
    return model.ends if name is None else model.ends | {model.tokenizer.control[name[0]]}
