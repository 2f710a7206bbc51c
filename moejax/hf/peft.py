"""Adapters in the format of PEFT, in and out: ``adapter_config.json``, and safetensors in which a
matrix is named as in the model's own files, every expert's alone.

Letters: A: as in the names on disk, the first part of an adapter; P: its rank.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from moejax.config.checks import check, shorten
from moejax.config.errors import CheckpointError
from moejax.config.model import ModelConfig
from moejax.hf import accounts
from moejax.hf.files import WEIGHTS, Tensor, open_tensors, read_json, read_tensor
from moejax.hf.tensors import ArrayPath, Entry
from moejax.hf.writing import save_tensors
from moejax.moe.adapted import A, B
from moejax.runtime.atomic_files import write_json

SETTINGS, ARRAYS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, WEIGHT = "base_model.model.", ".weight"
PARTS = {A: "lora_A", B: "lora_B"}
PLAIN: dict[str, Any] = {
    "target_parameters": None,
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layer_replication": None,
}
"""Fields of the settings that say how adapters differ from ours, and what says nothing."""
Shapes = dict[ArrayPath, tuple[int, ...]]


@dataclass(frozen=True)
class Module:
    """A matrix that an adapter of PEFT can belong to."""

    name: str
    """On disk, without ``.weight``."""
    entry: Entry
    expert: int | None

    @property
    def path(self) -> ArrayPath:
        """The array of ours."""
        return self.entry.paths[0]

    @property
    def place(self) -> tuple[int, ...]:
        """Where the matrix stands in it."""
        index = () if self.entry.index is None else (self.entry.index,)
        return index if self.expert is None else (*index, self.expert)


def list_shapes(params: dict[str, Any], bias_LE: Any) -> Shapes:
    """The shapes of a model's arrays by path, from these or from their shapes."""
    bias = {} if bias_LE is None else {accounts.BIAS: bias_LE}
    return {path: leaf.shape for path, leaf in (flatten_dict(params) | bias).items()}


def list_modules(family: str, config: ModelConfig, shapes: Shapes) -> Iterator[Module]:
    """All matrices of a model that are matrices of their own on disk, too."""
    for entry in accounts.list_entries(family, config, shapes):
        if len(entry.paths) > 1 or len(entry.shape) != 2 or not entry.rule.transpose:
            continue
        for number, name in enumerate(entry.names):
            if (accounts.find_layer(name) or 0) < config.num_layers and name.endswith(WEIGHT):
                expert = number if entry.rule.is_per_expert else None
                yield Module(name.removesuffix(WEIGHT), entry, expert)


def write_adapter(
    directory: Path,
    family: str,
    config: ModelConfig,
    shapes: Shapes,
    adapters: dict[str, Any],
    scale: float,
    base: str,
) -> None:
    """Write what is trained beside a frozen model (see ``models.adapters``). ``shapes`` are those
    of the model's arrays, ``base`` is where it lies.

    Raises ``CheckpointError`` for what the format has no place for.
    """
    there = {path: np.asarray(leaf) for path, leaf in flatten_dict(adapters).items()}
    if routers := [path for path in there if path[-1] not in PARTS]:
        raise CheckpointError(
            f"{'/'.join(routers[0])} was trained itself, and PEFT's format has adapters alone:"
            f" export the whole model, without --adapters."
        )
    modules = list(list_modules(family, config, shapes))
    left = sorted({path[:-1] for path in there} - {module.path for module in modules})
    if left:
        raise CheckpointError(
            f"{'/'.join(left[0])}: {family} models keep it in a tensor with others, for which"
            f" PEFT's format has no adapters. Export the whole model, without --adapters, or train"
            f" with --run.lora.on attention."
        )
    adapted = [module for module in modules if (*module.path, A) in there]
    tensors: dict[str, np.ndarray] = {}
    for module in adapted:
        a_DP, b_PF = (there[(*module.path, part)][module.place] for part in (A, B))
        start = f"{PREFIX}{module.name}."
        tensors[f"{start}lora_A{WEIGHT}"] = np.ascontiguousarray(a_DP.T)
        written = module.entry.rule.write([b_PF], config)
        tensors[f"{start}lora_B{WEIGHT}"] = np.ascontiguousarray(written)
    rank = next(iter(tensors.values())).shape[0]
    save_tensors(tensors, directory / ARRAYS)
    write_json(
        directory / SETTINGS,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": scale * rank,
            "lora_dropout": 0.0,
            "use_rslora": False,
            "target_modules": name_targets(modules, adapted),
            "inference_mode": True,
            **PLAIN,
        },
    )


def name_targets(modules: list[Module], adapted: list[Module]) -> list[str]:
    """The modules that have adapters: by their last name, where all of this name have one."""
    chosen = {module.name for module in adapted}
    found: dict[str, bool] = {}
    for module in modules:
        last = module.name.rpartition(".")[2]
        found[last] = found.get(last, True) and module.name in chosen
    names = {n.rpartition(".")[2] if found[n.rpartition(".")[2]] else n for n in chosen}
    return sorted(names)


def is_adapter(path: Path) -> bool:
    """Whether a directory holds adapters in this format."""
    return (path / SETTINGS).is_file()


def refuse_adapters(path: Path, new: str | Path = "NEW") -> None:
    """Raise ``ConfigError`` if ``path`` holds adapters in this format, where the whole model is
    needed; ``new`` is where to merge them into it.
    """
    check(
        not is_adapter(path),
        f"{path} has adapters, and not the model that they belong to: `moejax merge {path} {new}"
        f" --base MODEL` adds them to it.",
    )


def read_adapter(
    directory: Path, family: str, config: ModelConfig, shapes: Shapes
) -> tuple[dict[str, Any], float]:
    """Adapters for a model whose arrays have these ``shapes``, and what multiplies them. Where some
    layers have none, theirs are zero. Nothing in the directory is executed.

    Raises ``CheckpointError`` for whatever is missing, unknown, misshapen or not supported.
    """
    rank, scale = read_settings(directory)
    modules = {module.name: module for module in list_modules(family, config, shapes)}
    file = directory / ARRAYS
    if not file.is_file():
        raise CheckpointError(f"{file} is missing.")
    tensors = open_tensors([file], {}, 2 * len(modules))
    made: dict[ArrayPath, np.ndarray] = {}
    for name, tensor in tensors.items():
        module, part = _find_module(name, modules, family)
        other = name.replace(PARTS[part], PARTS[B if part == A else A])
        if other not in tensors:
            raise CheckpointError(f"{file}: {name} is there without {other}.")
        *leading, D, F = shapes[module.path]
        ours = (*leading, D, rank) if part == A else (*leading, rank, F)
        theirs = (rank, D) if part == A else (F, rank)
        if tensor.shape != theirs:
            raise CheckpointError(
                f"{file}: {name} is {list(tensor.shape)} instead of {list(theirs)}."
            )
        array = made.setdefault((*module.path, part), np.zeros(ours, np.float32))
        array[module.place] = _read(tensor, part, module, config)
    if not made:
        raise CheckpointError(f"{file} has no tensors.")
    return unflatten_dict(made), scale


def read_settings(directory: Path) -> tuple[int, float]:
    """The rank, and what multiplies the product: alpha over it, or over its root (rsLoRA)."""
    file = directory / SETTINGS
    said = read_json(file)
    if said.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{file}: peft_type {shorten(said.get('peft_type'))} is not supported; LORA is."
        )
    for name, value in PLAIN.items():
        if said.get(name) and said[name] != value:
            raise CheckpointError(
                f"{file}: {name} {shorten(said[name])} is not supported; it must be"
                f" {shorten(value)}."
            )
    rank: Any = said.get("r")
    alpha: Any = said.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise CheckpointError(f"{file}: r {shorten(rank)} must be a whole number above 0.")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise CheckpointError(f"{file}: lora_alpha {shorten(alpha)} must be a number.")
    return rank, alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)


def _find_module(name: str, modules: dict[str, Module], family: str) -> tuple[Module, str]:
    """The matrix that a tensor belongs to, and which part it is."""
    for part, theirs in PARTS.items():
        end = f".{theirs}{WEIGHT}"
        inner = name.removeprefix(PREFIX).removesuffix(end)
        if name.startswith(PREFIX) and name.endswith(end) and inner in modules:
            return modules[inner], part
    raise CheckpointError(
        f"{ARRAYS}: {shorten(name)} is not known: no matrix of this {family} model is named so."
    )


def _read(tensor: Tensor, part: str, module: Module, config: ModelConfig) -> np.ndarray:
    if tensor.kind not in WEIGHTS:
        raise CheckpointError(
            f"{tensor.file}: {tensor.name} is {tensor.kind}; adapters are {', '.join(WEIGHTS)}."
        )
    array = read_tensor(tensor).astype(np.float32)
    if not np.isfinite(array).all():
        raise CheckpointError(f"{tensor.file}: {tensor.name} is not finite.")
    if part == A:
        return array.T
    return module.entry.rule.read(array, 0, config, (slice(None), slice(None)))
