"""Parameters of released models from the fields of their config.json, against their cards."""

import pytest

from moejax.hf.configs import read_config
from moejax.models.counts import cost

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
LARGER = {
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_hidden_layers": 56,
    "num_attention_heads": 48,
    "vocab_size": 32768,
}
OLMOE = {
    "model_type": "olmoe",
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
    "vocab_size": 50304,
    "rope_theta": 10000.0,
    "clip_qkv": None,
}
QWEN3 = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 151936,
    "rope_theta": 1e6,
    "attention_bias": False,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_nextn_predict_layers": 1,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
}
DEEPSEEK_V2_LITE = DEEPSEEK_V3 | {
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "q_lora_rank": None,
    "vocab_size": 102400,
}
QWEN2 = {
    "model_type": "qwen2_moe",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "vocab_size": 151936,
    "rope_theta": 1e6,
}
GPT_OSS_20B = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "vocab_size": 201088,
    "rope_theta": 150000,
    "max_position_embeddings": 131072,
}


CARDS = [
    pytest.param(MIXTRAL, 46.703, 12.880, 3, id="Mixtral-8x7B"),
    pytest.param(MIXTRAL | LARGER, 140.630, 39.161, 3, id="Mixtral-8x22B"),
    pytest.param(OLMOE, 6.919, 1.282, 3, id="OLMoE-1B-7B"),
    pytest.param(QWEN3, 30.532, 3.353, 3, id="Qwen3-30B-A3B"),
    pytest.param(
        DEEPSEEK_V3 | {"num_nextn_predict_layers": 0}, 671.0, 37.6, 1, id="DeepSeek-V3"
    ),  # the card says 37
    pytest.param(DEEPSEEK_V2_LITE, 15.7, 2.7, 1, id="DeepSeek-V2-Lite"),
    pytest.param(QWEN2, 14.3, 2.7, 1, id="Qwen1.5-MoE-A2.7B"),
    pytest.param(GPT_OSS_20B, 20.9, 4.2, 1, id="gpt-oss-20b"),
]
"""Settings, parameters and active parameters in billions, and the digits that the card has."""


@pytest.mark.parametrize(("hf", "total", "active", "digits"), CARDS)
def test_parameters_equal_the_card(hf, total, active, digits):
    model = read_config(hf)
    price = cost(model, model.vocab_size, sequence_length=1)
    assert round(price.parameters_total / 1e9, digits) == total
    assert round(price.parameters_active / 1e9, digits) == active


@pytest.mark.parametrize(
    ("hf", "active"),
    [
        pytest.param(DEEPSEEK_V2_LITE, 2.4, id="DeepSeek-V2-Lite"),
        pytest.param(GPT_OSS_20B, 3.6, id="gpt-oss-20b"),
    ],
)
def test_some_cards_leave_the_embedding_out(hf, active):
    model = read_config(hf)
    price = cost(model, model.vocab_size, sequence_length=1)
    met = price.parameters_active - model.vocab_size * model.width
    assert abs(met / 1e9 - active) < 0.06
