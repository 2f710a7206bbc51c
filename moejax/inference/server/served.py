"""What a server serves: one model, by one engine."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from moejax.config.errors import ConfigError
from moejax.data.tokenizer import Tokenizer
from moejax.inference.chat_prompts import find_turn_ends
from moejax.inference.engine.engine import Engine
from moejax.inference.open_model import OpenModel
from moejax.inference.server.errors import ApiError
from moejax.inference.server.limits import Limits
from moejax.inference.server.tally import Tally

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model, its engine, and what clients may ask of them."""

    name: str
    """By which clients name the model."""
    model: OpenModel
    engine: Engine
    limits: Limits
    window: int | None = None
    """Positions that a position sees, and so the longest prompt; None: all."""
    created: int
    """When the server began, in seconds since 1970."""
    tally: Tally = field(default_factory=Tally)
    _reader: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="prompts")
    )

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        assert self.model.tokenizer is not None  # as in every language model that is opened
        return self.model.tokenizer

    @property
    def routed_layers(self) -> list[int]:
        """The layers in which tokens choose experts."""
        return [i for i, routed in enumerate(self.model.config.routed_layers) if routed]

    @property
    def longest_prompt(self) -> int:
        """Tokens that a prompt may have, so that at least one can follow."""
        limits = [self.limits.max_prompt, self.window, self.engine.longest - 1]
        return min(limit for limit in limits if limit is not None)

    @property
    def length(self) -> int:
        """Tokens of a text, prompt and all, where nobody says more: as many as the model was
        trained on, if there is room for them.
        """
        return min(self.model.context, self.engine.longest)

    async def read(self, act: Callable[[], T]) -> T:
        """What ``act`` makes of a request, in the one thread that reads prompts: a long one holds
        up no answer.
        """
        return await asyncio.get_running_loop().run_in_executor(self._reader, act)

    def check_name(self, name: object) -> None:
        """Raise ``ApiError`` unless a request names this model, or none."""
        if name is not None and name != self.name:
            shown = name if isinstance(name, str) and 0 < len(name) < 100 else "of that name"
            raise ApiError(
                f"there is no model {shown} here: {self.name} is the only one.",
                status=404,
                param="model",
                code="model_not_found",
            )

    @cached_property
    def turn_ends(self) -> frozenset[int]:
        """The tokens that end an answer in a conversation. Raises ``ApiError`` without a
        template.
        """
        try:
            return find_turn_ends(self.model)
        except ConfigError as error:
            raise ApiError(
                f"this model answers no conversations, as whoever started the server gave no chat"
                f" template: {error}",
                code="no_chat_template",
            ) from error
