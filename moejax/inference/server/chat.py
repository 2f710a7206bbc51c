"""`POST /v1/chat/completions`: the next message of a conversation, by the model's chat template."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from moejax.config.checks import LARGEST
from moejax.config.errors import ConfigError
from moejax.inference.chat_prompts import chat_prompt
from moejax.inference.engine.requests import Token
from moejax.inference.sampling import Sampling
from moejax.inference.server.answering import Form, answer
from moejax.inference.server.asked import MOST_LOGPROBS, Asked, check_size, read_common
from moejax.inference.server.errors import ApiError
from moejax.inference.server.fields import Fields
from moejax.inference.server.served import Served
from moejax.inference.server.token_text import write_content

_NOT_SUPPORTED: dict[str, Sequence[Any]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}


class ChatForm(Form):
    """How answers in a conversation are written."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def hold(self, text: str) -> dict[str, Any]:
        """A message."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def hold_part(self, text: str, first: bool) -> dict[str, Any]:
        """What is new of a message; at first who says it, too."""
        return {"delta": {"role": "assistant", "content": text} if first else {"content": text}}

    def logprobs(self, tokens: tuple[Token, ...], offset: int) -> dict[str, Any] | None:
        """A list of objects, one for each token."""
        best = self.asked.logprobs
        return None if best is None else write_content(tokens, best, self.tokenizer)


async def converse(request: Request) -> Response:
    """Answer a request."""
    return await answer(request, ChatForm, read_conversation)


def read_conversation(body: dict[str, Any], served: Served) -> Asked:
    """What a body asks for. Raises ``ApiError``."""
    fields = Fields(body)
    common = read_common(fields, served)
    fields.check_neutral(_NOT_SUPPORTED)
    tokens = read_tokens(fields)
    logprobs = read_logprobs(fields)
    messages = fields.take("messages")
    fields.finish()
    prompt = read_messages(messages, served)
    if tokens is None:
        tokens = max(1, served.length - len(prompt))
    check_size([prompt], common.n, tokens, served, "messages")
    ends = served.turn_ends if common.ends is None else common.ends
    return Asked(
        prompts=[prompt],
        befores=[""],
        n=common.n,
        sampling=Sampling(tokens=tokens, **common.sampling),
        ends=ends,
        logprobs=logprobs,
        routes=common.routes,
        stream=common.stream,
        include_usage=common.include_usage,
    )


def read_tokens(fields: Fields) -> int | None:
    """How many tokens are asked for, by the new name or the old one."""
    old = fields.whole("max_tokens", None, 1, LARGEST)
    new = fields.whole("max_completion_tokens", None, 1, LARGEST)
    if old is not None and new is not None and old != new:
        raise fields.wrong("max_tokens", "is the older name of `max_completion_tokens`: give one.")
    return old if new is None else new


def read_logprobs(fields: Fields) -> int | None:
    """How many of the best tokens are shown beside each token; None: nothing is."""
    wanted = fields.truth("logprobs")
    best = fields.whole("top_logprobs", None, 0, MOST_LOGPROBS)
    if best and not wanted:
        raise fields.wrong("top_logprobs", "goes with `logprobs`: true only.")
    return (best or 0) if wanted else None


def read_messages(messages: Any, served: Served) -> np.ndarray:
    """The tokens of a conversation. Raises ``ApiError``."""
    if messages is None:
        raise ApiError(
            "`messages` is missing: a list of objects with `role` and `content`.",
            param="messages",
            code="missing_required_parameter",
        )
    if not isinstance(messages, list) or not messages:
        raise ApiError(
            "`messages` must be a list of objects with `role` and `content`, one at least.",
            param="messages",
            code="invalid_type" if not isinstance(messages, list) else "invalid_value",
        )
    for message in messages:
        check_parts(message)
    _ = served.turn_ends  # whether there is a template
    try:
        ids = chat_prompt(served.model, messages, place="the conversation")
    except ConfigError as error:
        raise ApiError(str(error), param="messages", code="invalid_value") from error
    return np.asarray(ids, np.int32)


def check_parts(message: Any) -> None:
    """Raise ``ApiError`` for a message with a part that is no text. Everything else is told where
    messages are read.
    """
    content = message.get("content") if isinstance(message, dict) else None
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict) or part.get("type", "text") != "text":
            kind = str(part.get("type"))[:40] if isinstance(part, dict) else "no object"
            raise ApiError(
                f"`messages` has a part that is {kind}: this model reads text only.",
                param="messages",
                code="unsupported_value",
            )
