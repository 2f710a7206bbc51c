"""Heads, biases and windows."""

from moejax.hf.fields.translation import Fields, Translation, check_allowed


def _read_heads(hf: Fields) -> Fields:
    heads = hf["num_attention_heads"]
    return {
        "num_kv_heads": hf.get("num_key_value_heads") or heads,
        "head_size": hf.get("head_dim") or hf["hidden_size"] // heads,
    }


heads = Translation(
    _read_heads,
    lambda model: {
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.plain_head_size,
    },
)

# Latent attention: every head has keys and values of its own.
one_head_each = Translation(
    lambda hf: check_allowed(hf, "num_key_value_heads", (None, hf["num_attention_heads"])),
    lambda model: {"num_key_value_heads": model.num_heads},
)

# Where DeepSeek-V3 has this field, it is another name of the width that positions rotate.
rotary_head = Translation(
    lambda hf: check_allowed(hf, "head_dim", (None, hf["qk_rope_head_dim"])),
    lambda model: {},
)

window = Translation(
    lambda hf: {"attention.window": hf["sliding_window"]},
    lambda model: {"sliding_window": model.attention.window},
)


def _bias(field: str, kind: str) -> Translation:
    """A field that says whether there are biases of this ``kind``."""
    return Translation(
        lambda hf: {"attention.bias": kind if hf[field] else "none"},
        lambda model: {field: model.attention.bias == kind},
    )


attention_bias = _bias("attention_bias", "all")
query_key_value_bias = _bias("attention_bias", "qkv")
qkv_bias = _bias("qkv_bias", "qkv")
