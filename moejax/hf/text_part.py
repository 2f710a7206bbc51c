"""The text model of a release that has another model beside it, such as one that sees images: its
own ``config.json``, and its tensors under the names that they have alone.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from moejax.config.checks import check, shorten

T = TypeVar("T")
WHOLE = ("quantization_config", "tie_word_embeddings")
"""Fields that such a release has outside of its text model's part."""


@dataclass(frozen=True)
class TextPart:
    """Where a text model is in a release."""

    family: str
    """The ``model_type`` that it has alone."""
    architecture: str
    prefixes: dict[str, str]
    """What its tensors' names begin with there, and what instead where it is alone."""


TEXT_PARTS = {
    "qwen3_5_moe": TextPart(
        "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", {"model.language_model.": "model."}
    ),
    "kimi_k25": TextPart(
        "kimi_k2",
        "DeepseekV3ForCausalLM",
        {"language_model.": "", "model.language_model.": "model."},
    ),
}
"""By the release's own ``model_type``."""


def take_text_config(hf: dict[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of the text model; of a release that is one, itself. Raises
    ``ConfigError``.
    """
    part = TEXT_PARTS.get(str(hf.get("model_type")))
    if part is None:
        return hf
    text = hf.get("text_config")
    check(isinstance(text, dict), f"text_config is {shorten(text)}: it must be an object.")
    assert isinstance(text, dict)
    whole = {field: hf[field] for field in WHOLE if field in hf}
    said = {"model_type": part.family, "architectures": [part.architecture]}
    return whole | text | said


def take_text_tensors(hf: dict[str, Any], tensors: dict[str, T]) -> dict[str, T]:
    """Tensors by name, those of the text model of the release ``hf`` as they are called alone."""
    part = TEXT_PARTS.get(str(hf.get("model_type")))
    if part is None:
        return tensors
    found = {}
    for name, tensor in tensors.items():
        begins = next((prefix for prefix in part.prefixes if name.startswith(prefix)), None)
        own = name if begins is None else part.prefixes[begins] + name.removeprefix(begins)
        found[own] = tensor
    return found
