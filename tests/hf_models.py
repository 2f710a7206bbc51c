"""Tiny models of every family, in Hugging Face's format, with weights drawn from their names.

``tests/goldens`` has what transformers says of them: the names and shapes of their tensors, logits,
auxiliary losses and greedy text, and what it says of the fields of ``config.json``, written by
``tests/make_goldens.py``.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

GOLDENS = Path(__file__).parent / "goldens"
V, N = 64, 12

SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 16}
DEEPSEEK = {
    **SIZES,
    "num_key_value_heads": 4,
    "intermediate_size": 40,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 12,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6,
    "v_head_dim": 10,
    "n_group": 4,
    "topk_group": 2,
    "rms_norm_eps": 1e-6,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": 16,
}
MSCALES = {"mscale": 0.8, "mscale_all_dim": 0.6}

MIXTRAL = {"model_type": "mixtral", **SIZES, "intermediate_size": 24, "num_local_experts": 4}
QWEN2 = {"model_type": "qwen2_moe", **SIZES, **EXPERTS, "intermediate_size": 40}
QWEN2 |= {"shared_expert_intermediate_size": 32}
QWEN3 = {"model_type": "qwen3_moe", **SIZES, **EXPERTS, "intermediate_size": 40, "head_dim": 12}
OLMOE = {"model_type": "olmoe", **SIZES, **EXPERTS, "intermediate_size": 16}
V2 = {"model_type": "deepseek_v2", **DEEPSEEK, "topk_method": "group_limited_greedy"}
V3 = {"model_type": "deepseek_v3", **DEEPSEEK, "num_hidden_layers": 3, "norm_topk_prob": True}
GPT_OSS = {"model_type": "gpt_oss", **SIZES, "intermediate_size": 16, "num_local_experts": 6}
GPT_OSS |= {"num_experts_per_tok": 3, "head_dim": 12, "sliding_window": 5, "num_hidden_layers": 3}
GRANITE = {"model_type": "granitemoe", **SIZES, "intermediate_size": 16, "num_local_experts": 6}
GRANITE |= {"num_experts_per_tok": 3, "attention_multiplier": 0.3}
LLAMA = {"model_type": "llama", **SIZES, "intermediate_size": 40}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}

CASES: dict[str, dict[str, Any]] = {
    "mixtral": MIXTRAL | {"num_experts_per_tok": 2, "rope_theta": 1e6},
    "mixtral_window_tied": MIXTRAL
    | {"num_experts_per_tok": 3, "sliding_window": 4, "tie_word_embeddings": True, "head_dim": 12},
    "qwen2_moe": QWEN2,
    "qwen2_moe_k1_every_second": QWEN2
    | {"num_experts_per_tok": 1, "decoder_sparse_step": 2, "num_hidden_layers": 4},
    "qwen2_moe_normalised": QWEN2 | {"norm_topk_prob": True, "qkv_bias": False},
    "qwen3_moe": QWEN3 | {"norm_topk_prob": True},
    "qwen3_moe_first_dense_tied": QWEN3
    | {"mlp_only_layers": [0], "tie_word_embeddings": True, "attention_bias": True},
    "olmoe": OLMOE,
    "olmoe_k1": OLMOE | {"num_experts_per_tok": 1, "num_key_value_heads": 4},
    "deepseek_v2": V2 | {"routed_scaling_factor": 2.0},
    "deepseek_v2_lite_yarn": V2
    | {"q_lora_rank": None, "topk_method": "greedy", "rope_scaling": YARN | MSCALES}
    | {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0},
    "deepseek_v3": V3 | {"routed_scaling_factor": 2.5},
    "deepseek_v3_yarn": V3
    | {"rope_scaling": YARN | MSCALES, "first_k_dense_replace": 2, "n_shared_experts": 1}
    | {"num_experts_per_tok": 4, "q_lora_rank": None, "routed_scaling_factor": 1.5},
    "gpt_oss": GPT_OSS | {"rope_scaling": YARN | {"truncate": False}},
    "gpt_oss_tied": GPT_OSS
    | {"tie_word_embeddings": True, "layer_types": ["sliding_attention"] * 3}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "granitemoe": GRANITE,
    "granitemoe_scales": GRANITE
    | {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}
    | {"tie_word_embeddings": True, "attention_bias": True},
    "llama": LLAMA | {"rope_scaling": LLAMA3},
    "llama_linear_tied": LLAMA
    | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "tie_word_embeddings": True},
    "mistral": LLAMA | {"model_type": "mistral", "sliding_window": 5},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 12},
}
ROUTED = [
    name for name, hf in CASES.items() if hf["model_type"] not in ("llama", "mistral", "qwen3")
]
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


def sizes_of(kind: str) -> dict[str, int]:
    """The fields that every ``config.json`` of a family has: all others have defaults."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 32}
    sizes |= {"vocab_size": V, "intermediate_size": 40}
    if kind.startswith(("qwen2_moe", "qwen3_moe", "deepseek")):
        sizes["moe_intermediate_size"] = 16
    if kind == "qwen2_moe":
        sizes["shared_expert_intermediate_size"] = 32
    if kind == "deepseek_v2":
        sizes["num_experts_per_tok"] = 6
    experts = {"qwen2_moe": "num_experts", "olmoe": "num_experts", "qwen3_moe": "num_experts"}
    experts |= dict.fromkeys(("mixtral", "gpt_oss", "granitemoe"), "num_local_experts")
    experts |= dict.fromkeys(("deepseek_v2", "deepseek_v3"), "n_routed_experts")
    return sizes | ({experts[kind]: 64} if kind in experts else {})


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
    return json.loads((GOLDENS / "fields.json").read_text())[kind]


def shapes(case: str) -> dict[str, list[int]]:
    """The names and shapes of a model's tensors, as transformers writes them."""
    return json.loads((GOLDENS / "tensors.json").read_text())[case]


def values(name: str, shape: list[int]) -> np.ndarray:
    """A tensor drawn from its name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("e_score_correction_bias"):
        return rng.uniform(0, 0.2, shape).astype(np.float32)
    if len(shape) == 1 and "norm" in name:
        return (1 + 0.2 * rng.normal(size=shape)).astype(np.float32)
    return (0.25 * rng.normal(size=shape)).astype(np.float32)


def tensors(case: str) -> dict[str, np.ndarray]:
    """All tensors of a model."""
    return {name: values(name, shape) for name, shape in shapes(case).items()}


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
    with np.load(GOLDENS / "outputs.npz") as file:
        return {k.split("/")[1]: file[k] for k in file.files if k.startswith(f"{case}/")}
