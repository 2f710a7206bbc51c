"""`POST /v1/completions`: texts that are continued."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from moejax.config.checks import LARGEST
from moejax.inference.engine.requests import Token
from moejax.inference.sampling import Sampling
from moejax.inference.server.answering import Form, answer
from moejax.inference.server.asked import MOST_LOGPROBS, MOST_TEXTS, Asked, check_size, read_common
from moejax.inference.server.errors import ApiError
from moejax.inference.server.fields import Fields, check_text
from moejax.inference.server.served import Served
from moejax.inference.server.token_text import write_lists

TOKENS = 16
"""OpenAI's number where ``max_tokens`` is missing."""
_NOT_SUPPORTED: dict[str, Sequence[Any]] = {"suffix": ("",)}


class CompletionForm(Form):
    """How completions are written."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def hold(self, text: str) -> dict[str, Any]:
        """The text itself."""
        return {"text": text}

    def hold_part(self, text: str, first: bool) -> dict[str, Any]:
        """The text itself."""
        return {"text": text}

    def logprobs(self, tokens: tuple[Token, ...], offset: int) -> dict[str, Any] | None:
        """Four lists with an item for each token."""
        best = self.asked.logprobs
        return None if best is None else write_lists(tokens, best, self.tokenizer, offset)


async def complete(request: Request) -> Response:
    """Answer a request."""
    return await answer(request, CompletionForm, read_completion)


def read_completion(body: dict[str, Any], served: Served) -> Asked:
    """What a body asks for. Raises ``ApiError``, and ``ConfigError`` for text that the tokenizer
    does not take.
    """
    fields = Fields(body)
    common = read_common(fields, served)
    fields.check_neutral(_NOT_SUPPORTED)
    tokens = fields.whole("max_tokens", TOKENS, 1, LARGEST)
    logprobs = fields.whole("logprobs", None, 0, MOST_LOGPROBS)
    echo = fields.truth("echo")
    best_of = fields.whole("best_of", common.n, 1, MOST_TEXTS)
    if best_of != common.n:
        raise fields.wrong("best_of", "is supported as equal to `n` only: all texts are given.")
    if echo and logprobs is not None:
        raise fields.wrong("echo", "goes without `logprobs`: those of prompts are not computed.")
    prompt = fields.take("prompt")
    fields.finish()
    prompts = [read_prompt(one, served) for one in list_prompts(prompt)]
    check_size(prompts, common.n, tokens, served, "prompt")
    return Asked(
        prompts=prompts,
        befores=[show_prompt(one, served) if echo else "" for one in list_prompts(prompt)],
        n=common.n,
        sampling=Sampling(tokens=tokens, **common.sampling),
        ends=common.ends,
        logprobs=logprobs,
        routes=common.routes,
        stream=common.stream,
        include_usage=common.include_usage,
    )


def list_prompts(value: Any) -> list[str | list[int]]:
    """The prompts: a text, several, tokens, or several lists of tokens."""
    if value is None:
        raise ApiError(
            "`prompt` is missing: the beginning of a text, or a list of such, or of tokens.",
            param="prompt",
            code="missing_required_parameter",
        )
    if isinstance(value, str) or _are_tokens(value):
        return [value]
    several = isinstance(value, list) and value
    if several and (all(isinstance(one, str) for one in value) or all(map(_are_tokens, value))):
        if len(value) > MOST_TEXTS:
            raise ApiError(
                f"`prompt` has {len(value):,} texts, more than the {MOST_TEXTS} of one request.",
                param="prompt",
                code="invalid_value",
            )
        return value
    raise ApiError(
        "`prompt` must be a string, a list of strings, a list of tokens (whole numbers), or a list"
        " of lists of tokens, and none may be empty.",
        param="prompt",
        code="invalid_type",
    )


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def read_prompt(prompt: str | list[int], served: Served) -> np.ndarray:
    """The tokens of a prompt: of a text with what stands before every text, else as they are."""
    if isinstance(prompt, str):
        ids = served.model.begin(check_text(prompt, "prompt"))
        if not len(ids):
            raise ApiError(
                "`prompt` is empty, and this model has no token that begins a text: give it at"
                " least a word.",
                param="prompt",
                code="invalid_value",
            )
        return ids
    size = served.model.vocab_size
    wrong = next((one for one in prompt if not 0 <= one < size), None)
    if wrong is not None:
        raise ApiError(
            f"`prompt` has the token {str(wrong)[:20]}: those of this model are 0 to {size - 1:,}.",
            param="prompt",
            code="invalid_value",
        )
    return np.asarray(prompt, np.int32)


def show_prompt(prompt: str | list[int], served: Served) -> str:
    """A prompt as the beginning of its answers."""
    return prompt if isinstance(prompt, str) else served.tokenizer.decode(prompt)
