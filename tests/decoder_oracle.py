"""The decoder in float64, as slowly and plainly as can be: one text, position by position.

It has every setting of ``AttentionConfig`` and ``ModelConfig`` for dense layers of grouped queries,
and reads the parameters of ``DecoderLM``.
"""

import numpy as np

from moejax.config import ModelConfig
from moejax.models.layer_runs import locate_layers


def decode(config: ModelConfig, params: dict, tokens_N: np.ndarray) -> np.ndarray:
    """``logits_NV`` of one text."""
    x_ND = params["embedding_VD"][tokens_N].astype(np.float64)
    for layer, ((run, block), number) in enumerate(locate_layers(config)):
        own = pick(params[run][block], number)
        y_ND = attend(config, layer, own, norm_if(config, own, "attention_norm", x_ND))
        x_ND = x_ND + norm_if(config, own, "attention_output_norm", y_ND)
        y_ND = feed_forward(own, norm_if(config, own, "feed_forward_norm", x_ND))
        x_ND = x_ND + norm_if(config, own, "feed_forward_output_norm", y_ND)
    return norm(config, params["final_norm"], x_ND) @ params["w_head_DV"]


def pick(tree: dict, number: int) -> dict:
    """The parameters of one layer out of a stack, in float64."""
    return {
        name: pick(x, number) if isinstance(x, dict) else np.asarray(x[number], np.float64)
        for name, x in tree.items()
    }


def norm(config: ModelConfig, own: dict, x: np.ndarray) -> np.ndarray:
    mean_square = (x**2).mean(-1, keepdims=True)
    return x / np.sqrt(mean_square + config.norm_epsilon) * own["scale_D"]


def norm_if(config: ModelConfig, own: dict, name: str, x_ND: np.ndarray) -> np.ndarray:
    """Normalised, where the model has norms in this place."""
    ends = {"pre": [False], "post": [True], "sandwich": [False, True]}[config.norm_place]
    there = ("output" in name) in ends
    assert there == (name in own)
    return norm(config, own[name], x_ND) if there else x_ND


def feed_forward(own: dict, x_ND: np.ndarray) -> np.ndarray:
    w = own["feed_forward"]
    gate_NF = x_ND @ w["w_gate_DF"]
    return (gate_NF / (1 + np.exp(-gate_NF)) * (x_ND @ w["w_up_DF"])) @ w["w_down_FD"]


def attend(config: ModelConfig, layer: int, own: dict, x_ND: np.ndarray) -> np.ndarray:
    """What a layer's heads find."""
    w, N = own["attention"], len(x_ND)
    H, J, A = config.num_heads, config.key_value_heads, config.plain_head_size
    q_NHA, k_NJA, v_NJA = (
        (x_ND @ w[f"w_{name}_DX"]).reshape(N, -1, A) for name in ("query", "key", "value")
    )
    after = config.attention.qk_norm_place == "after_rotation"
    if not after:
        q_NHA, k_NJA = norm_heads(config, w, "query", q_NHA), norm_heads(config, w, "key", k_NJA)
    for n in range(N):
        q_NHA[n], k_NJA[n] = turn(config, layer, n, q_NHA[n]), turn(config, layer, n, k_NJA[n])
    if after:
        q_NHA, k_NJA = norm_heads(config, w, "query", q_NHA), norm_heads(config, w, "key", k_NJA)
    y_NHA = np.zeros((N, H, A))
    for n in range(N):
        first = 0 if config.windows[layer] is None else max(0, n + 1 - config.windows[layer])
        for h in range(H):
            j = h // (H // J)
            score_M = k_NJA[first : n + 1, j] @ q_NHA[n, h] * A**-0.5
            p_M = np.exp(score_M - score_M.max())
            y_NHA[n, h] = p_M / p_M.sum() @ v_NJA[first : n + 1, j]
    y_NX = y_NHA.reshape(N, -1)
    if config.attention.output_gate:
        y_NX = y_NX / (1 + np.exp(-x_ND @ w["w_output_gate_DX"]))
    return y_NX @ w["w_out_XD"]


def norm_heads(config: ModelConfig, w: dict, name: str, x_NHA: np.ndarray) -> np.ndarray:
    """Queries or keys, each head by itself or all as one."""
    whole = config.attention.qk_norm_over == "width"
    x = x_NHA.reshape(len(x_NHA), -1) if whole else x_NHA
    return norm(config, w[f"{name}_norm"], x).reshape(x_NHA.shape)


def turn(config: ModelConfig, layer: int, position: int, x_HA: np.ndarray) -> np.ndarray:
    """Heads with their pairs turned as at this position."""
    settings, kind = config.attention, config.attention_kinds[layer]
    A = settings.rotary_size or x_HA.shape[-1]
    if settings.rotary_in not in ("all", kind):
        return x_HA
    theta = (settings.window_rope_theta if kind == "window" else None) or config.rope_theta
    turned_HA = x_HA.copy()
    for i in range(A // 2):
        angle = position * theta ** (-2 * i / A)
        one, other = x_HA[:, i], x_HA[:, i + A // 2]
        turned_HA[:, i] = one * np.cos(angle) - other * np.sin(angle)
        turned_HA[:, i + A // 2] = other * np.cos(angle) + one * np.sin(angle)
    return turned_HA
