"""Quantised weights, in and out: which codec a ``config.json`` asks for, and tensors in parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from moejax.config.checks import LARGEST, check, shorten
from moejax.config.errors import CheckpointError
from moejax.hf.files import WEIGHTS, Tensor, read_tensor
from moejax.hf.fp8 import Fp8Blocks
from moejax.hf.int4 import PackedInt4
from moejax.hf.mxfp4 import Mxfp4
from moejax.hf.parts import Part

Codec = Fp8Blocks | Mxfp4 | PackedInt4
CODECS: dict[str, Codec] = {"fp8": Fp8Blocks(), "mxfp4": Mxfp4(), "int4": PackedInt4()}
"""Those that are written, by the name that ``--quantise`` gives them."""
READ = (
    "moejax reads fp8 in blocks (DeepSeek-V3, Qwen3 FP8), mxfp4 (gpt-oss) and int4 of"
    " compressed-tensors (format pack-quantized, symmetric: Kimi K2-Thinking). Take the release in"
    " bfloat16, or let the tool that quantised it write it so."
)
OTHER_SCALES = (".scale", ".qscale_weight")
"""Names of scales in blocks, in place of ``.weight_scale_inv``."""
UNUSED = ".activation_scale"
"""The scale of what a matrix is multiplied by, where that is quantised as well."""
ROWS = 128
"""Rows of a matrix that are decoded together."""


def find_codec(told: Any) -> Codec | None:
    """The codec that a ``quantization_config`` asks for; None where there is none. Raises
    ``ConfigError`` with its name for every other format.
    """
    if told is None:
        return None
    check(isinstance(told, dict), f"quantization_config is {shorten(told)}: {READ}")
    method = told.get("quant_method")
    readers = {"fp8": _find_fp8, "mxfp4": lambda _: Mxfp4(), "compressed-tensors": _find_packed}
    check(
        isinstance(method, str) and method in readers,
        f"quantization_config has quant_method {shorten(method)}: {READ}",
    )
    return readers[method](told)


def _find_fp8(told: dict[str, Any]) -> Codec:
    experts = told.get("expert_dtype") or "fp8"
    check(experts == "fp8", f"quantization_config has expert_dtype {shorten(experts)}: {READ}")
    block = told.get("weight_block_size", [128, 128])
    if block is None:
        return Fp8Blocks(None)
    good = isinstance(block, list) and len(block) == 2 and all(map(_is_size, block))
    check(good, f"weight_block_size is {shorten(block)}: it must be two whole numbers.")
    return Fp8Blocks((block[0], block[1]))


def _find_packed(told: dict[str, Any]) -> Codec:
    said = told.get("format")
    check(
        said == "pack-quantized",
        f"quantization_config has compressed-tensors' format {shorten(said)}: {READ}",
    )
    groups = told.get("config_groups")
    weights = [
        group.get("weights")
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict)
    ]
    check(
        len(weights) == 1 and isinstance(weights[0], dict),
        f"config_groups is {shorten(groups)}: one group with weights is read. {READ}",
    )
    rule: dict[str, Any] = weights[0] or {}
    for field, wanted in (
        ("num_bits", 4),
        ("type", "int"),
        ("symmetric", True),
        ("strategy", "group"),
        ("actorder", None),
    ):
        found = rule.get(field, wanted)
        check(found == wanted, f"config_groups has {field} {shorten(found)}: {READ}")
    turned = told.get("transform_config") or None
    check(turned is None, f"transform_config is {shorten(turned)}: {READ}")
    size = rule.get("group_size")
    check(_is_size(size), f"config_groups has group_size {shorten(size)}: {READ}")
    return PackedInt4(rule["group_size"])


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 < number <= LARGEST


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor on disk in parts."""

    codec: Codec
    parts: tuple[Tensor, ...]
    shape: tuple[int, ...]
    """As it is without a codec."""
    kind = "BF16"
    """The type that it has without a codec."""

    @property
    def name(self) -> str:
        """The name of the part with the codes."""
        return self.parts[0].name

    @property
    def nbytes(self) -> int:
        """The size of all parts."""
        return sum(part.nbytes for part in self.parts)

    @property
    def stored(self) -> tuple[int, int]:
        """Rows and columns of a matrix as it is stored."""
        *_, rows, width = self.shape
        return (width, rows) if self.codec.swapped else (rows, width)

    def read(self, expert: int | None, rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """These rows of the matrix as it is stored, or of an expert's, in ``dtype``: what is in
        float32 meanwhile is ``ROWS`` of them. Raises ``CheckpointError``.
        """
        width = self.stored[1]
        arrays = [read_tensor(part) for part in self.parts]
        if expert is not None:
            arrays = [array[expert] for array in arrays]
        found = np.empty((len(rows), width), dtype)
        try:
            for first in range(0, len(rows), ROWS):
                some = rows[first : first + ROWS]
                with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named
                    found[first : first + ROWS] = self.codec.decode(arrays, some, width)
        except CheckpointError as error:
            raise CheckpointError(f"{self.name}: {error}.") from error
        return found


Source = Tensor | Packed
"""Where a tensor of the model lies on disk."""


def rename_scales(tensors: dict[str, Tensor], codec: Codec | None) -> None:
    """Give scales of blocks the one name that is looked for."""
    if not isinstance(codec, Fp8Blocks):
        return
    for name in list(tensors):
        for other in OTHER_SCALES:
            weight = name.removesuffix(other) + ".weight"
            if name.endswith(other) and weight in tensors and f"{weight}_scale_inv" not in tensors:
                tensors[f"{weight}_scale_inv"] = tensors.pop(name)


def list_parts(
    name: str, shape: tuple[int, ...], there: dict[str, Tensor], codec: Codec | None
) -> list[tuple[str, Part]]:
    """The names of a tensor's parts, and what each of them must be: one part where nothing on disk
    says that it has codes.
    """
    plain = [(name, Part("", tuple(WEIGHTS), shape))]
    if codec is None or len(shape) not in codec.ranks:
        return plain
    coded = "" in codec.suffixes and name in there and there[name].kind not in WEIGHTS
    if not coded and not any(suffix and name + suffix in there for suffix in codec.suffixes):
        return plain
    return [(name + part.suffix, part) for part in codec.list_parts(shape)]


def is_unused(name: str, there: dict[str, Tensor], codec: Codec | None) -> bool:
    """Whether a tensor belongs to quantised weights, but not to the weights."""
    weight = name.removesuffix(UNUSED) + ".weight"
    return codec is not None and name.endswith(UNUSED) and weight in there


def encode(name: str, tensor: np.ndarray, codec: Codec) -> Iterator[tuple[str, np.ndarray]]:
    """The parts of a tensor by name, expert by expert. Raises ``CheckpointError`` for weights that
    are not finite.
    """
    stored = np.swapaxes(tensor, -1, -2) if codec.swapped else tensor
    matrices = stored if tensor.ndim > 2 else stored[None]
    if not all(np.isfinite(matrix).all() for matrix in matrices):
        raise CheckpointError(
            f"{name} has weights that are NaN or infinite, for which {codec.name} has no codes."
        )
    found = [codec.encode(matrix) for matrix in matrices]
    for number, part in enumerate(codec.list_parts(tensor.shape)):
        arrays = [parts[number] for parts in found]
        yield name + part.suffix, arrays[0] if tensor.ndim == 2 else np.stack(arrays)
