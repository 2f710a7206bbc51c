"""gpt-oss."""

from hf_cases.shared import SIZES, YARN

GPT_OSS = {"model_type": "gpt_oss", **SIZES, "intermediate_size": 16, "num_local_experts": 6}
GPT_OSS |= {"num_experts_per_tok": 3, "head_dim": 12, "sliding_window": 5, "num_hidden_layers": 3}
CASES = {
    "gpt_oss": GPT_OSS | {"rope_scaling": YARN | {"truncate": False}},
    "gpt_oss_tied": GPT_OSS
    | {"tie_word_embeddings": True, "layer_types": ["sliding_attention"] * 3}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
}
LEAST = {"gpt_oss": {"num_local_experts": 64}}
