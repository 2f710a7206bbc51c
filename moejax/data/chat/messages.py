"""Conversations in the formats that people have, as messages with a role and a content.

``messages`` (OpenAI, Hugging Face): a list of objects with ``role`` and ``content``.
``conversations`` (ShareGPT): a list of objects with ``from`` and ``value``.
``prompt`` and ``completion`` (TRL): two texts, or two lists of messages.
"""

from typing import Any, NamedTuple

from moejax.config.checks import shorten
from moejax.data.kinds.records import Bad, find_field, name_fields

USUAL_FIELDS = ("messages", "conversations", "conversation")
"""Where messages are, if no field is named."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
ROLES_OF_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
}
"""Other names that ``from`` has for them."""
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of what an assistant has thought; templates read the first, as in transformers."""

Message = dict[str, Any]


class Talk(NamedTuple):
    """A conversation before it is a text."""

    messages: list[Message]
    tools: list[Any] | None
    """What the record says of tools, for the template."""


def find_messages(value: Any, field: str | None, place: str) -> Talk | Bad:
    """The conversation to learn from in a value of JSON, at ``field``, or else where it usually is:
    the assistant speaks in it.
    """
    talk = find_talk(value, field, place)
    if isinstance(talk, Bad) or any(one["role"] == "assistant" for one in talk.messages):
        return talk
    return Bad(place, "is a conversation without an assistant: there is nothing to learn.")


def find_talk(value: Any, field: str | None, place: str) -> Talk | Bad:
    """The conversation in a value of JSON, whoever speaks in it; else as ``find_messages``."""
    tools = None
    if isinstance(value, dict):
        tools = value.get("tools") if isinstance(value.get("tools"), list) else None
        try:
            found = _find(value, field)
        except KeyError:
            named = f"`{field}` (--data.field)" if field else "`messages` or `conversations`"
            other = "" if field else ", nor `prompt` and `completion`"
            return Bad(place, f"has no field {named}{other}. It has: {name_fields(value)}.")
    else:
        found = value
    if not isinstance(found, list):
        return Bad(place, f"has {shorten(found)} where a list of messages is needed.")
    if not found:
        return Bad(place, "is a conversation without a message.")
    messages = []
    for number, one in enumerate(found, 1):
        message = _read_message(one)
        if isinstance(message, str):
            return Bad(place, f"has a message, its {_ordinal(number)}, {message}")
        messages.append(message)
    return Talk(messages, tools)


def _find(value: dict[str, Any], field: str | None) -> Any:
    """Raises ``KeyError``."""
    if field is not None:
        return find_field(value, field)
    for name in USUAL_FIELDS:
        if name in value:
            return value[name]
    prompt, completion = value["prompt"], value["completion"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    both = isinstance(prompt, list) and isinstance(completion, list)
    return prompt + completion if both else [prompt, completion]


def _read_message(one: Any) -> Message | str:
    """A message, or what is wrong with it. Fields that are null are as if they were not there, as
    in transformers.
    """
    if not isinstance(one, dict):
        return f"that is {shorten(one)}: an object with `role` and `content` is needed."
    message = {name: value for name, value in one.items() if value is not None}
    if "role" not in message and "from" in message:
        said = message.pop("from")
        message = {"role": ROLES_OF_SHAREGPT.get(str(said), said)} | message
        if "content" not in message and "value" in message:
            message["content"] = message.pop("value")
    if "role" not in message:
        return f"without a `role`. It has: {name_fields(one)}."
    if message["role"] not in ROLES:
        return f"of the unknown role {shorten(message['role'])}: there are {', '.join(ROLES)}."
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning} | message | {"reasoning_content": reasoning}
    content = message.get("content")
    if content is None:
        calls = message["role"] == "assistant" and bool(message.get("tool_calls"))
        return message if calls else f"without a `content`. It has: {name_fields(one)}."
    if isinstance(content, list):
        texts = (isinstance(part, dict) and isinstance(part.get("text"), str) for part in content)
        return message if content and all(texts) else "of which some part is no text."
    if not isinstance(content, str):
        return f"whose content is {shorten(content)}, not a text."
    return message


def list_texts(value: Any) -> list[str]:
    """All texts in messages, at any depth."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for one in value for text in list_texts(one)] if isinstance(value, list) else []


def _ordinal(number: int) -> str:
    last = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else last}"
