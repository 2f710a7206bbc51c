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
        x_ND = x_ND + attend(config, layer, own, norm(config, own["attention_norm"], x_ND))
        x_ND = x_ND + feed_forward(own, norm(config, own["feed_forward_norm"], x_ND))
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
    q_NHA, k_NJA = norm(config, w["query_norm"], q_NHA), norm(config, w["key_norm"], k_NJA)
    for n in range(N):
        q_NHA[n], k_NJA[n] = turn(config, layer, n, q_NHA[n]), turn(config, layer, n, k_NJA[n])
    y_NHA = np.zeros((N, H, A))
    for n in range(N):
        first = 0 if config.windows[layer] is None else max(0, n + 1 - config.windows[layer])
        for h in range(H):
            j = h // (H // J)
            score_M = k_NJA[first : n + 1, j] @ q_NHA[n, h] * A**-0.5
            p_M = np.exp(score_M - score_M.max())
            y_NHA[n, h] = p_M / p_M.sum() @ v_NJA[first : n + 1, j]
    return y_NHA.reshape(N, -1) @ w["w_out_XD"]


def turn(config: ModelConfig, layer: int, position: int, x_HA: np.ndarray) -> np.ndarray:
    """Heads with their pairs turned as at this position."""
    settings, kind, A = config.attention, config.attention_kinds[layer], x_HA.shape[-1]
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
