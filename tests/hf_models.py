"""Tiny models of every family, in Hugging Face's format, with weights drawn from their names.

The models are in ``hf_cases``. ``tests/goldens`` has what transformers says of them, by family: the
names and shapes of their tensors, logits, auxiliary losses and greedy text, and what it says of the
fields of ``config.json``, written by ``tests/make_goldens.py FAMILY...``.
"""

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from hf_cases import ALIASES, CASES, LEAST, RENAMED, ZERO_CENTRED, shared
from hf_cases.shared import V
from safetensors.numpy import save_file

from moejax.hf.families import FAMILIES

GOLDENS = Path(__file__).parent / "goldens"
N = 12

FIRST = list({hf["model_type"]: hf for hf in reversed(CASES.values())}.values())
"""One case of each family."""
NEUTRAL = ("model_type", "architectures", "transformers_version", "return_dict", "problem_type")
NEUTRAL += ("bos_token_id", "eos_token_id", "pad_token_id")
"""Fields that say nothing of the arithmetic, and are left as they are."""
OTHERS: dict[str, Any] = {
    "attention_bias": True,
    "attn_logit_softcapping": 1.0,
    "clip_qkv": 0.1,
    "final_logit_softcapping": 1.0,
    "head_dim": 4,
    "hidden_act": "gelu",
    "is_causal": False,
    "layer_types": ["full_attention", "sliding_attention"],
    "logit_scale": 0.5,
    "max_position_embeddings": 8,
    "mlp_bias": True,
    "mlp_only_layers": [0],
    "moe_layer_freq": 2,
    "n_group": 1,
    "no_rope_layers": [0, 1],
    "num_experts_per_tok": 2,
    "original_max_position_embeddings": 8,
    "partial_rotary_factor": 0.5,
    "rope_parameters": {"rope_type": "linear", "factor": 3.0},
    "rope_scaling": {"rope_type": "linear", "factor": 5.0},
    "rope_theta": 77.0,
    "scoring_func": "other",
    "sliding_window": 3,
    "swiglu_limit": 0.1,
    "topk_method": "other",
    "use_qk_norm": True,
}
"""Values to try for fields whose defaults are no numbers, or which are in no class."""

OF_WHAT_IS_LEFT_OUT = ("index_head_dim", "index_n_heads")
"""Fields that matter to parts alone that we leave out."""


def sizes_of(kind: str) -> dict[str, Any]:
    """The fields that every ``config.json`` of a family has: all others have defaults."""
    return shared.LEAST | LEAST[kind]


def change_fields(hf: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Another value for each field of a family, and for fields of others."""
    changes: dict[str, Any] = {}
    for field, value in (defaults | hf).items():
        if isinstance(value, bool):
            changes[field] = not value
        elif isinstance(value, int):
            changes[field] = value + 1
        elif isinstance(value, float):
            changes[field] = 1.5 * value + 0.1
    changes |= {field: value for field, value in OTHERS.items() if hf.get(field) != value}
    return {field: value for field, value in changes.items() if field not in NEUTRAL}


def fields(kind: str) -> dict[str, dict[str, Any]]:
    """What transformers says of a family's fields: ``defaults`` that they have with ``sizes_of``,
    and values that ``matter``: another model than that of ``FIRST``.
    """
    said = json.loads((GOLDENS / f"{ALIASES.get(kind, kind)}.json").read_text())
    return {"defaults": said["defaults"], "matter": said["matter"]}


def shapes(case: str) -> dict[str, list[int]]:
    """The names and shapes of a model's tensors, as transformers writes them."""
    kind = CASES[case]["model_type"]
    return json.loads((GOLDENS / f"{kind}.json").read_text())["tensors"][case]


def is_selection_bias(name: str) -> bool:
    """Whether a tensor on disk is one, which is no parameter."""
    return name.endswith(("correction_bias", "mlp.expert_bias"))


def is_left_out(name: str, kind: str) -> bool:
    """Whether a family's tensor on disk is no part of our model, in any layer."""
    family, in_layer = FAMILIES[kind], re.sub(r"^model\.layers\.\d+\.", "", name)
    if any(rule.theirs == in_layer for rule in family.tensors):
        return False
    return any(re.search(part.pattern, name) for part in family.left_out)


def in_transformers(name: str) -> str:
    """What transformers' own model calls a tensor on disk."""
    for theirs, its in RENAMED.items():
        name = name.replace(theirs, its)
    return name


def peer_class(kind: str) -> Any:
    """The class in transformers of a family's models: not all are in its tables of classes."""
    import transformers

    return getattr(transformers, FAMILIES[kind].architecture)


def values(name: str, shape: list[int], kind: str = "") -> np.ndarray:
    """A tensor of a family, drawn from its name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if kind in ZERO_CENTRED and name.endswith("norm.weight") and "linear_attn" not in name:
        return (0.2 * rng.normal(size=shape)).astype(np.float32)
    if is_selection_bias(name):
        return rng.uniform(0, 0.2, shape).astype(np.float32)
    if len(shape) == 1 and "norm" in name:
        return (1 + 0.2 * rng.normal(size=shape)).astype(np.float32)
    return (0.25 * rng.normal(size=shape)).astype(np.float32)


def tensors(case: str) -> dict[str, np.ndarray]:
    """All tensors of a model."""
    kind = CASES[case]["model_type"]
    return {name: values(name, shape, kind) for name, shape in shapes(case).items()}


def write(directory: Path, case: str, **changes: Any) -> Path:
    """Write a model's directory, with ``changes`` in its config.json; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CASES[case] | changes))
    save_file(tensors(case), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def prompt() -> np.ndarray:
    """Three rows of N tokens."""
    return np.random.default_rng(0).integers(3, V, (3, N)).astype(np.int32)


def golden(case: str) -> dict[str, np.ndarray]:
    """What transformers says of a model: ``logits_BNV`` of ``prompt()``, ``greedy_BN`` after it,
    and ``loss``, the auxiliary loss (NaN where there is none).
    """
    with np.load(GOLDENS / f"{CASES[case]['model_type']}.npz") as file:
        return {k.split("/")[1]: file[k] for k in file.files if k.startswith(f"{case}/")}
