"""What both kinds of requests ask for: how many texts, how long, and how they are drawn."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moejax.inference.engine.requests import Request
from moejax.inference.sampling import Sampling
from moejax.inference.server.errors import ApiError
from moejax.inference.server.fields import Fields, check_text
from moejax.inference.server.served import Served

MOST_STOPS, LONGEST_STOP = 16, 256
"""Stop strings, and characters of each: every new token is compared with all of them."""
MOST_TEXTS = 128
"""Of one request."""
MOST_LOGPROBS = 20
LEAST_TEMPERATURE = 1e-6
"""Above 0: logits that are divided by less would be infinite."""
ANY_SEED = 2**31 - 1
ROUTES = "moejax_routes"
"""The field that asks for the experts of each token, and that holds them in an answer."""
_NOT_SUPPORTED: dict[str, Sequence[Any]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "service_tier": ("auto", "default"),
}
"""Fields that are known, and the values that ask for nothing."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request, once it is read."""

    prompts: Sequence[np.ndarray]
    befores: Sequence[str]
    """What an answer begins with, for each prompt: the prompt's text for ``echo``, else nothing."""
    n: int
    """Texts for each prompt."""
    sampling: Sampling
    ends: frozenset[int] | None = None
    logprobs: int | None = None
    routes: bool = False
    stream: bool = False
    include_usage: bool = False

    @property
    def requests(self) -> list[Request]:
        """The texts in the order of their indices: those of the first prompt first. An index is the
        number of the prompt, so that a seed gives the texts of `moejax generate`.
        """
        repeated = [prompt for prompt in self.prompts for _ in range(self.n)]
        return [
            Request(
                prompt=prompt,
                sampling=self.sampling,
                number=index,
                logprobs=self.logprobs,
                routes=self.routes,
                ends=self.ends,
            )
            for index, prompt in enumerate(repeated)
        ]

    def before(self, index: int) -> str:
        """What the text of an index begins with."""
        return self.befores[index // self.n]

    def usage(self, drawn: int) -> dict[str, int]:
        """How many tokens there were; ``drawn`` of them were generated."""
        read = sum(map(len, self.prompts))
        return {
            "prompt_tokens": read,
            "completion_tokens": drawn,
            "total_tokens": read + drawn,
        }


@dataclass(frozen=True, kw_only=True)
class Common:
    """The fields that both kinds have."""

    n: int
    sampling: dict[str, Any]
    """Arguments of ``Sampling``, without the number of tokens."""
    ends: frozenset[int] | None
    routes: bool
    stream: bool
    include_usage: bool


def read_common(fields: Fields, served: Served) -> Common:
    """Take the fields that both kinds have. Raises ``ApiError``."""
    served.check_name(fields.take("model"))
    fields.check_neutral(_NOT_SUPPORTED)
    sampling = {
        "temperature": fields.real("temperature", 1.0, 0, 2),
        "top_p": fields.real("top_p", 1.0, 0, 1),
        "top_k": read_top_k(fields),
        "seed": fields.whole("seed", None, 0, ANY_SEED),
        "stop": read_stop(fields),
    }
    if 0 < sampling["temperature"] < LEAST_TEMPERATURE:
        raise fields.wrong("temperature", "must be 0, or not so small.")
    if sampling["top_p"] == 0:
        raise fields.wrong("top_p", "must be greater than 0: 1 takes all tokens.")
    if sampling["seed"] is None:
        sampling["seed"] = secrets.randbelow(ANY_SEED + 1)
    stream = fields.truth("stream")
    return Common(
        n=fields.whole("n", 1, 1, MOST_TEXTS),
        sampling=sampling,
        ends=frozenset() if fields.truth("ignore_eos") else None,
        routes=read_routes(fields, served),
        stream=stream,
        include_usage=read_stream_options(fields, stream),
    )


def read_top_k(fields: Fields) -> int | None:
    """How many tokens are drawn from; -1 and 0 mean all, as elsewhere."""
    top_k = fields.whole("top_k", -1, -1, ANY_SEED)
    return top_k if top_k > 0 else None


def read_stop(fields: Fields) -> tuple[str, ...]:
    """The strings that end a text."""
    value = fields.take("stop")
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise fields.wrong_type("stop", "a string or a list of strings", value)
    if len(stops) > MOST_STOPS:
        raise fields.wrong("stop", f"may have {MOST_STOPS} strings, not {len(stops):,}.")
    for one in stops:
        if not 0 < len(one) <= LONGEST_STOP:
            raise fields.wrong(
                "stop",
                f"must have strings of 1 to {LONGEST_STOP} characters, not of {len(one):,}.",
            )
        check_text(one, "stop")
    return tuple(stops)


def read_routes(fields: Fields, served: Served) -> bool:
    """Whether the experts of each token are given."""
    wanted = fields.truth(ROUTES)
    if wanted and not served.routed_layers:
        raise fields.wrong(ROUTES, "is for models with routed layers, and this one has none.")
    return wanted


def read_stream_options(fields: Fields, stream: bool) -> bool:
    """Whether a stream is to end with the usage."""
    options = fields.inside("stream_options")
    if options is None:
        return False
    if not stream:
        raise fields.wrong("stream_options", "goes with `stream`: true only.")
    include = options.truth("include_usage")
    options.check_neutral({"include_obfuscation": (False,)})
    options.finish()
    return include


def check_size(
    prompts: Sequence[np.ndarray], n: int, tokens: int, served: Served, field: str
) -> None:
    """Raise ``ApiError`` for too many texts, or prompts or texts that are too long; ``field`` has
    the prompts.
    """
    count, most = len(prompts) * n, min(MOST_TEXTS, served.engine.most)
    if count > most:
        raise ApiError(
            f"`{field}` and `n` ask for {count:,} texts; one request may have {most:,} here.",
            param="n" if n > 1 else field,
            code="invalid_value",
        )
    longest = max(map(len, prompts))
    if longest > served.longest_prompt:
        raise ApiError(
            f"`{field}` has {longest:,} tokens, more than the {served.longest_prompt:,} that a"
            f" prompt may have here.",
            param=field,
            code="context_length_exceeded",
        )
    if longest + tokens > served.engine.longest:
        raise ApiError(
            f"`{field}` has {longest:,} tokens, and {tokens:,} more are asked for: together they"
            f" may be {served.engine.longest:,} here.",
            param="max_tokens",
            code="context_length_exceeded",
        )
