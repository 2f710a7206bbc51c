"""Dense models."""

from hf_cases.shared import SIZES

LLAMA = {"model_type": "llama", **SIZES, "intermediate_size": 40}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
CASES = {
    "llama": LLAMA | {"rope_scaling": LLAMA3},
    "llama_linear_tied": LLAMA
    | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "tie_word_embeddings": True},
    "mistral": LLAMA | {"model_type": "mistral", "sliding_window": 5},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 12},
}
LEAST: dict[str, dict] = {"llama": {}, "mistral": {}, "qwen3": {}}
