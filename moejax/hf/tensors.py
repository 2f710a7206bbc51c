"""How a family's tensors lie on disk, and how they become arrays of ours."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moejax.config.model import ModelConfig

ArrayPath = tuple[str, ...]
"""Where an array stands in the tree of parameters."""


@dataclass(frozen=True)
class Rule:
    """One tensor of theirs (or one for each expert), and the arrays of ours that it holds.

    Their last two dimensions are swapped first where ``transpose`` says so; then each of ours takes
    ``columns`` of the last dimension. Both ways lose nothing: ``columns`` is a permutation.
    """

    theirs: str
    """The name in a layer; ``{e}`` stands for an expert's number."""
    ours: str | tuple[str, ...]
    transpose: bool = False
    columns: str | None = None
    """A key of ``COLUMNS``."""
    row: bool = False
    """A matrix of one row on disk, and a vector here."""
    channels: bool = False
    """The weights of a convolution of channels: [X, 1, W] on disk, [W, X] here."""

    @property
    def names(self) -> tuple[str, ...]:
        """All of ours."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def is_per_expert(self) -> bool:
        """Whether there is a tensor for each expert."""
        return "{e}" in self.theirs

    def read(
        self, tensor: np.ndarray, part: int, config: ModelConfig, index: tuple[slice, ...]
    ) -> np.ndarray:
        """What lies at ``index`` of the ``part``-th array of ours, from a tensor of theirs."""
        tensor = np.swapaxes(tensor, -1, -2) if self.transpose else tensor
        tensor = tensor[0] if self.row else tensor
        tensor = tensor[:, 0].T if self.channels else tensor
        if self.columns is None:
            return tensor[index]
        columns = self.list_columns(tensor.shape[-1], part, config)[index[-1]]
        return tensor[index[:-1]][..., columns]

    def list_columns(self, width: int, part: int, config: ModelConfig) -> np.ndarray:
        """Which of ``width`` columns the ``part``-th array of ours has, in its order."""
        if self.columns is None:
            return np.arange(width)
        return COLUMNS[self.columns](config, width)[part]

    def write(self, arrays: list[np.ndarray], config: ModelConfig) -> np.ndarray:
        """Their tensor from arrays of ours."""
        tensor = arrays[0]
        if self.columns is not None:
            width = sum(array.shape[-1] for array in arrays)
            tensor = np.empty((*tensor.shape[:-1], width), tensor.dtype)
            for array, columns in zip(arrays, COLUMNS[self.columns](config, width), strict=True):
                tensor[..., columns] = array
        tensor = tensor[None] if self.row else tensor
        tensor = tensor.T[:, None] if self.channels else tensor
        return np.swapaxes(tensor, -1, -2) if self.transpose else tensor

    def shape(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of their tensor, from those of ours."""
        shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        shape = (1, *shape) if self.row else shape
        shape = (shape[1], 1, shape[0]) if self.channels else shape
        return (*shape[:-2], shape[-1], shape[-2]) if self.transpose else shape


@dataclass(frozen=True)
class Entry:
    """A rule at work: tensors of theirs, and the arrays of ours that they are."""

    rule: Rule
    names: tuple[str, ...]
    """On disk: one, or one for each expert."""
    paths: tuple[ArrayPath, ...]
    index: int | None
    """Which repeat of a run of layers (or row of ``bias_LE``); None for what is in no layer."""
    shape: tuple[int, ...]
    """Of each tensor of theirs."""

    @property
    def is_bank(self) -> bool:
        """Whether it has experts: a tensor for each of them, or all matrices in one tensor."""
        return self.rule.is_per_expert or (len(self.shape) > 2 and not self.rule.channels)


def _split_pairs(size: int) -> np.ndarray:
    """Where rotated pairs stand that lie side by side on disk: ours lie half a head apart."""
    return np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])


def order_query_columns(config: ModelConfig, width: int) -> list[np.ndarray]:
    """Of each head the part without positions, if it has one, then rotated pairs."""
    head, turned = config.query_head_size, config.rotary_size
    plain = head - turned
    of_head = np.concatenate([np.arange(plain), plain + _split_pairs(turned)])
    return [(np.arange(0, width, head)[:, None] + of_head).reshape(-1)]


def order_latent_columns(config: ModelConfig, width: int) -> list[np.ndarray]:
    """The latent vector, then a key's rotated pairs."""
    latent = width - config.rotary_size
    pairs = latent + _split_pairs(config.rotary_size)
    return [np.concatenate([np.arange(latent), pairs])]


def order_gated_queries(config: ModelConfig, width: int) -> list[np.ndarray]:
    """The queries of all heads, and their gates: on disk each head has both."""
    size = config.query_head_size
    heads = np.arange(0, width, 2 * size)[:, None]
    return [(heads + first + np.arange(size)).reshape(-1) for first in (0, size)]


def order_delta_groups(config: ModelConfig, width: int) -> list[np.ndarray]:
    """Queries, keys, values and gates of a layer with a memory: on disk each key head has all of
    its own.
    """
    J, H, A, U, _ = config.delta_sizes
    return _split_groups(J, [A, A, H // J * U, H // J * U])


def order_delta_numbers(config: ModelConfig, width: int) -> list[np.ndarray]:
    """What is made a beta of each head, and what a step, likewise."""
    J, H, *_ = config.delta_sizes
    return _split_groups(J, [H // J, H // J])


def order_delta_parts(config: ModelConfig, width: int) -> list[np.ndarray]:
    """All queries, all keys, and all values of a layer with a memory."""
    J, H, A, U, _ = config.delta_sizes
    return _split_groups(1, [J * A, J * A, H * U])


def _split_groups(groups: int, sizes: list[int]) -> list[np.ndarray]:
    """Where the parts of these sizes stand of which each group has all, by part."""
    ends = np.cumsum([0, *sizes])
    first = np.arange(groups)[:, None] * ends[-1]
    return [
        (first + np.arange(start, end)).reshape(-1)
        for start, end in zip(ends[:-1], ends[1:], strict=True)
    ]


COLUMNS: dict[str, Callable[[ModelConfig, int], list[np.ndarray]]] = {
    "queries": order_query_columns,
    "latent_and_key": order_latent_columns,
    "query_and_gate": order_gated_queries,
    "delta_groups": order_delta_groups,
    "delta_numbers": order_delta_numbers,
    "delta_parts": order_delta_parts,
    "alternating": lambda config, width: [np.arange(0, width, 2), np.arange(1, width, 2)],
    "halves": lambda config, width: [np.arange(width // 2), np.arange(width // 2, width)],
}
