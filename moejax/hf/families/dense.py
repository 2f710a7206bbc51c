"""Dense models, to begin from."""

from moejax.hf.families.family import (
    ALL_BIASES,
    DENSE,
    GIVEN,
    GROUPED,
    GROUPED_QUERIES,
    NO_EXPERTS,
    NO_WINDOW,
    NORMS,
    QUERY_NORMS,
    SIZES,
    SWIGLU,
    Family,
)
from moejax.hf.fields import attention

FAMILIES: dict[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        fields=SIZES | {"intermediate_size": "dense_hidden_size"},
        defaults=GIVEN | {"max_position_embeddings": 2048, "attention_bias": False},
        fixed=SWIGLU | {"mlp_bias": False},
        ours=NO_EXPERTS,
        translations=(*GROUPED, attention.attention_bias),
        tensors=(*NORMS, *GROUPED_QUERIES, *ALL_BIASES, *DENSE),
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        fields=SIZES | {"intermediate_size": "dense_hidden_size"},
        defaults=GIVEN
        | {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
        fixed=SWIGLU,
        ours=NO_EXPERTS,
        translations=(*GROUPED, attention.window),
        tensors=(*NORMS, *GROUPED_QUERIES, *DENSE),
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        fields=SIZES | {"intermediate_size": "dense_hidden_size"},
        defaults=GIVEN
        | {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False}
        | {"max_position_embeddings": 32_768},
        fixed=SWIGLU | NO_WINDOW,
        ours=NO_EXPERTS | {"qk_norm": True},
        translations=(*GROUPED, attention.attention_bias),
        tensors=(*NORMS, *GROUPED_QUERIES, *ALL_BIASES, *QUERY_NORMS, *DENSE),
    ),
}
