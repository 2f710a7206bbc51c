"""The slow truth, in float64: loops over tokens and masks, sharing nothing with the library.

Written from the papers: Shazeer et al. 2017, Lepikhin et al. 2020 (GShard), Fedus et al. 2021
(Switch), Zoph et al. 2022 (ST-MoE). Arrays are numpy; gradients come from central differences of
these very functions.
"""

import math

import numpy as np


def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


def silu(x):
    return x / (1 + np.exp(-x))


def expert(weights, e, x):
    """SwiGLU expert ``e`` on one token."""
    gate, up = x @ weights["w_gate_EDF"][e], x @ weights["w_up_EDF"][e]
    return (silu(gate) * up) @ weights["w_down_EFD"][e]


def choose(logits, top_k, renormalise):
    """The experts of one token, best first, and their weights."""
    probabilities = softmax(logits)
    order = sorted(range(len(logits)), key=lambda e: (-probabilities[e], e))[:top_k]
    weights = probabilities[order]
    return order, weights / weights.sum() if renormalise else weights


def capacity(tokens, top_k, experts, factor):
    return max(1, min(tokens, math.ceil(factor * tokens * top_k / experts - 1e-6)))


def routed_layer(params, x, real, *, top_k, renormalise, factor, choices=None):
    """One group after the other; returns outputs, choices that were seated, and the sums.

    ``x`` [G, S, D], ``real`` [G, S]. ``choices`` (from an earlier call) fixes who chose and got
    what, as a gradient sees it.
    """
    G, S, D = x.shape
    E = params["w_router_DE"].shape[1]
    y = np.zeros_like(x)
    seated = np.zeros((G, S, top_k), bool)
    chosen = np.zeros((G, S, top_k), int)
    asked = np.zeros((G, E))
    probability = np.zeros((G, E))
    z = np.zeros(G)
    slots = capacity(S, top_k, E, factor)
    for g in range(G):
        weights = {}
        for s in range(S):
            logits = x[g, s] @ params["w_router_DE"]
            order, weight = choose(logits, top_k, renormalise)
            if choices is not None:
                order = list(choices[0][g, s])
                p = softmax(logits)[order]
                weight = p / p.sum() if renormalise else p
            chosen[g, s], weights[s] = order, weight
            if real[g, s]:
                probability[g] += softmax(logits)
                z[g] += np.log(np.exp(logits).sum()) ** 2
                for e in order:
                    asked[g, e] += 1
        taken = [0] * E
        for k in range(top_k):  # all first choices before any second
            for s in range(S):
                if not real[g, s]:
                    continue
                e = chosen[g, s, k]
                if taken[e] < slots:
                    taken[e] += 1
                    seated[g, s, k] = True
        if choices is not None:
            seated[g] = choices[1][g]
        for s in range(S):
            for k in range(top_k):
                if seated[g, s, k]:
                    y[g, s] += weights[s][k] * expert(params, chosen[g, s, k], x[g, s])
    return y, (chosen, seated), {"asked": asked, "probability": probability, "z": z}


def balance_loss(asked, probability, tokens, top_k):
    """E * sum f_e P_e over one batch, f the share of choices and P the mean probability."""
    E = asked.shape[-1]
    f = asked.sum(0) / (tokens * top_k)
    p = probability.sum(0) / tokens
    return E * (f * p).sum()


def gradient(function, params, step=1e-6):
    """Central differences of ``function(params)`` for every number in a dict of arrays."""
    result = {}
    for name, array in params.items():
        flat = np.zeros(array.size)
        for i in range(array.size):
            values = []
            for sign in (1, -1):
                moved = array.copy()
                moved.flat[i] += sign * step
                values.append(function(params | {name: moved}))
            flat[i] = (values[0] - values[1]) / (2 * step)
        result[name] = flat.reshape(array.shape)
    return result
