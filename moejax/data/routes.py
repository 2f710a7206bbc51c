"""Recorded routes for the batches of a model: those of moejax, of vLLM and of SGLang."""

import base64
import binascii
from collections.abc import Sequence

import numpy as np

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.config.model import ModelConfig
from moejax.data.batches import Batch
from moejax.data.route_files import Recording
from moejax.data.tokenizer import Tokenizer
from moejax.models.replay import check_replays, check_shape


def fit_routes(config: ModelConfig, routes: np.ndarray | str, tokens: int) -> np.ndarray:
    """The routes of one text of so many ``tokens`` as this model replays them: int32 [T, L, K].

    ``routes`` is an array of integers [tokens, layers, K], as moejax and vLLM give it
    (``routed_experts``), or the string that SGLang gives in its place: such an array in int32,
    in base64. Its layers are the model's routed layers, or all layers, of which dense ones are left
    out. It may lack the last token, which no model has read; that has -1 then, as has a choice
    of no expert.

    Raises ``ConfigError`` for a model without routes, routes of another shape, an expert that the
    model has not, and one that a token chooses twice.
    """
    check_replays(config)
    routes_TLK = decode(config, routes, tokens) if isinstance(routes, str) else np.asarray(routes)
    check(
        routes_TLK.dtype.kind in "iu",
        f"routes are numbers of experts, which are integers, not {routes_TLK.dtype}.",
    )
    layers = np.array(config.routed_layers)
    if routes_TLK.ndim == 3 and routes_TLK.shape[1] == len(layers):
        routes_TLK = routes_TLK[:, layers]
    if len(routes_TLK) == tokens - 1:
        routes_TLK = np.pad(
            routes_TLK.astype(np.int32),
            ((0, 1), *[(0, 0)] * (routes_TLK.ndim - 1)),
            constant_values=-1,
        )
    check_shape(config, routes_TLK.shape, (tokens,))
    check_experts(config, routes_TLK)
    return routes_TLK.astype(np.int32)


def decode(config: ModelConfig, text: str, tokens: int) -> np.ndarray:
    """An array of int32 in base64, whose layers are the model's routed ones, or all."""
    try:
        numbers = np.frombuffer(base64.b64decode(text, validate=True), np.int32)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"routes are no array of int32 in base64: {error}.") from error
    K, (L, of) = config.moe.top_k, (sum(config.routed_layers), len(config.routed_layers))
    for layers in (L, of):
        for rows in (tokens, tokens - 1):
            if numbers.size == rows * layers * K:
                return numbers.reshape(rows, layers, K)
    raise ConfigError(
        f"{numbers.size:,} numbers of experts are not this model's: {tokens:,} tokens with {L}"
        f" routed layers and {K} experts a token have {tokens * L * K:,}, or"
        f" {(tokens - 1) * L * K:,} without the last token."
    )


def check_experts(config: ModelConfig, routes_TLK: np.ndarray) -> None:
    """Raise ``ConfigError`` for a number that is no expert's, and for an expert chosen twice."""
    E = config.moe.num_choices
    for token, layer, k in np.argwhere((routes_TLK < -1) | (routes_TLK >= E))[:1].tolist():
        raise ConfigError(
            f"routes of token {token} in routed layer {layer}: {routes_TLK[token, layer, k]} is no"
            f" expert of this model, which has 0 to {E - 1}, and -1 for none."
        )
    sorted_TLK = np.sort(routes_TLK, axis=-1)
    twice_TLK = (sorted_TLK[..., 1:] == sorted_TLK[..., :-1]) & (sorted_TLK[..., 1:] >= 0)
    for token, layer, k in np.argwhere(twice_TLK)[:1].tolist():
        raise ConfigError(
            f"routes of token {token} in routed layer {layer}: expert"
            f" {sorted_TLK[token, layer, k]} is there twice, and a token chooses it once."
        )


def lay_batch(
    config: ModelConfig,
    texts: Sequence[np.ndarray],
    routes: Sequence[np.ndarray | str],
    length: int,
    first: int = 0,
) -> Batch:
    """A batch with a text in each row, and its routes: arrays [B, length], of routes
    [B, length, L, K]. The model is to say each token of a text but the first.

    ``texts`` are tokens (int [n], 2 <= n <= length + 1), ``routes`` what ``fit_routes`` takes;
    ``first`` is the number of the first text in messages.
    """
    L, K = sum(config.routed_layers), config.moe.top_k
    shape = (len(texts), length)
    batch = {name: np.zeros(shape, np.int32) for name in ("inputs", "targets", "segments")}
    batch["positions"] = np.zeros(shape, np.int32)
    batch["routes"] = np.full((*shape, L, K), -1, np.int32)
    for row, (tokens, one) in enumerate(zip(texts, routes, strict=True)):
        n = len(tokens) - 1
        check(
            0 < n <= length,
            f"text {first + row} has {n + 1:,} tokens, and a row of {length:,} positions holds 2 to"
            f" {length + 1:,}.",
        )
        batch["inputs"][row, :n] = tokens[:-1]
        batch["targets"][row, :n] = tokens[1:]
        batch["segments"][row, :n] = 1
        batch["positions"][row, :n] = np.arange(n)
        batch["routes"][row, :n] = fit_routes(config, one, n + 1)[:n]
    return batch


def lay_recording(
    config: ModelConfig, texts: Recording, tokenizer: Tokenizer, length: int, rows: int
) -> list[Batch]:
    """Batches of ``rows`` texts of a recording, as of ``lay_batch``; the last may have empty rows.
    ``bytes`` are those that each target stands for. Raises ``ConfigError`` for texts of fewer than
    two tokens or more than ``length + 1``, and as ``fit_routes`` does, with the number of the text.
    """
    batches = []
    for begin in range(0, len(texts.tokens), rows):
        part = slice(begin, begin + rows)
        tokens = texts.tokens[part]
        batch = lay_batch(config, tokens, texts.routes[part], length, first=begin)
        batch["bytes"] = np.zeros((len(tokens), length), np.int32)
        for row, ids in enumerate(tokens):
            batch["bytes"][row, : len(ids) - 1] = tokenizer.count_bytes(ids[1:])
        lacking = rows - len(tokens)
        batches.append(
            {
                name: np.pad(
                    x, [(0, lacking), *[(0, 0)] * (x.ndim - 1)], constant_values=-(name == "routes")
                )
                for name, x in batch.items()
            }
        )
    return batches
