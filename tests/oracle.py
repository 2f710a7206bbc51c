"""The slow truth, in float64: loops over tokens and masks, sharing nothing with the library.

Written from the papers, and from the code of released models, which each function names. Random
numbers are handed in. What is discrete (who chose whom, who got a slot) is a plan: a run returns
it, and can be told to keep it, as a gradient sees it. Gradients come from central differences of
these very functions.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment, minimize


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log(1 + np.exp(x))


def log_sum_exp(x):
    return x.max() + np.log(np.exp(x - x.max()).sum())


def normal_cdf(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2


def best(values, count):
    """The places of the largest values, the largest first, the lower place first among equals."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


# What a router is told.


@dataclass
class Layer:
    """The settings of a routed layer."""

    router: str
    top_k: int
    slots: int
    """Slots of one expert in one group; see ``capacity``."""
    seating: str = "position"
    training: bool = True
    expert_groups: int | None = None
    kept_expert_groups: int | None = None
    weight_scale: float | None = None
    bias_on: str | None = None
    token_counts: tuple[int, ...] | None = None
    max_experts_per_token: int | None = None
    temperature: float = 0.01
    rounds: int = 10
    """Of Sinkhorn's normalisation."""
    identity_experts: int = 0
    null_experts: int = 0


@dataclass
class Draws:
    """Random numbers, or None outside training."""

    normal_GSE: np.ndarray | None = None
    coin_GSK: np.ndarray | None = None
    uniform_GSE: np.ndarray | None = None
    disturbance_GSD: np.ndarray | None = None
    """What the router's input is multiplied by: jitter, dropout."""


@dataclass
class Token:
    """All that a token-choice router may look at."""

    layer: Layer
    logits: np.ndarray
    bias: np.ndarray
    noise: np.ndarray | None = None
    """x W_noise."""
    normal: np.ndarray | None = None
    coins: np.ndarray | None = None
    uniform: np.ndarray | None = None
    id: int | None = None
    experts: list[int] | None = None
    """Those that it must stay with."""

    def chosen(self, preference):
        """The K preferred experts, unless they are given."""
        if self.experts is not None:
            return self.experts
        return best(preference, self.layer.top_k)


# Routers where tokens choose: Token -> experts (-1: none), weights, distribution.


def mixture_of_all(t):
    """Shazeer et al. 2017, Eq. 1-2: y = sum_i G(x)_i E_i(x), G = softmax(x W_g)."""
    g = softmax(t.logits)
    experts = t.chosen(g)
    return experts, g[experts], g


def keep_top_k(logits, experts):
    """Shazeer et al. 2017, Eq. 3 and 5: softmax of the logits, -inf where not in the top k."""
    kept = np.full(len(logits), -np.inf)
    kept[experts] = logits[experts]
    return softmax(kept)


def top_k(t):
    """Shazeer et al. 2017, Eq. 3 and 5, without noise; with a bias, Wang et al. 2024, Eq. 3: the
    experts are the top k of s + b.
    """
    experts = t.chosen(softmax(t.logits) + t.bias)
    return experts, keep_top_k(t.logits, experts)[experts], softmax(t.logits)


def noise_width(t):
    """Shazeer et al. 2017, Eq. 4, and the 0.01 of the authors' code."""
    return softplus(t.noise) + 0.01


def noisy_top_k(t):
    """Shazeer et al. 2017, Eq. 3-5: H(x) = x W_g + StandardNormal * softplus(x W_noise)."""
    h = t.logits if t.normal is None else t.logits + t.normal * noise_width(t)
    experts = t.chosen(h)
    return experts, keep_top_k(h, experts)[experts], softmax(h)


def smooth_load(t):
    """Shazeer et al. 2017, Eq. 8-9: P(x, i) = Phi((x W_g)_i - kth_excluding(H, k, i) / width)."""
    h, k = t.logits + t.normal * noise_width(t), t.layer.top_k
    load = np.ones(len(h))
    for i in range(len(h)):
        others = sorted(np.delete(h, i), reverse=True)
        if k <= len(others):
            load[i] = normal_cdf((t.logits[i] - others[k - 1]) / noise_width(t)[i])
    return load


def switch(t):
    """Fedus et al. 2021, Eq. 1-2: the one most probable expert, weighted by its probability."""
    p = softmax(t.logits)
    i = t.chosen(p)[0]
    return [i], np.array([p[i]]), p


def gshard(t):
    """Lepikhin et al. 2020, Algorithm 1: g1 and g2 over their sum; the second expert stays if
    2 g2 > rnd. One that lost takes no slot, as in the authors' code: in the algorithm as printed
    it still moves the expert's counter on.
    """
    gates = softmax(t.logits)
    e1, e2 = best(gates, 2)
    g1, g2 = gates[e1], gates[e2]
    lost = t.coins is not None and not 2 * g2 / (g1 + g2) > t.coins[1]
    experts = [e1, -1 if lost else e2] if t.experts is None else t.experts
    return experts, np.array([g1, g2]) / (g1 + g2), gates


def v_moe(t):
    """Riquelme et al. 2021: g(x) = TOP_k(softmax(W x + eps)), eps normal and 1/E wide."""
    noise = 0 if t.normal is None else t.normal / len(t.logits)
    g = softmax(t.logits + noise)
    experts = t.chosen(g)
    return experts, g[experts], g


def softmax_of_top_logits(t):
    """Mixtral (Jiang et al. 2024): Softmax(TopK(x W_g)). Granite: the top k logits, then softmax
    over them. gpt-oss: likewise, of logits with a learned bias (which is in ``t.logits``).
    """
    experts = t.chosen(t.logits)
    return experts, softmax(t.logits[experts]), softmax(t.logits)


def softmax_then_top_k(t):
    """DeepSeekMoE (Dai et al. 2024), Eq. 9-11: s = softmax(u e), g_i = s_i if among the top K.

    So do Qwen2-MoE, OLMoE and Jamba: ``norm_topk_prob`` is false, or there is no such thing.
    """
    s = softmax(t.logits)
    experts = t.chosen(s)
    return experts, s[experts], s


def softmax_top_k_renormalised(t):
    """Qwen3-MoE: softmax, top k, divided by their sum (``norm_topk_prob`` is true)."""
    s = softmax(t.logits)
    experts = t.chosen(s)
    return experts, s[experts] / s[experts].sum(), s


def dynamic_top_p(t, p=0.4):
    """Huang et al. 2024, Eq. 3-5: the fewest most probable experts whose probabilities sum to at
    least p, here at most K; the weights are the probabilities.
    """
    s = softmax(t.logits)
    if t.experts is None:
        experts, gathered = [], 0.0
        for e in best(s, t.layer.top_k):
            experts.append(e if gathered < p else -1)
            gathered += s[e]
    else:
        experts = t.experts
    return experts, np.array([s[e] if e >= 0 else 0.0 for e in experts]), s


def expert_threshold(t):
    """Sun et al. 2026: the experts whose score lies above their threshold, -bias here; at most K,
    those furthest above. The weights are the scores.
    """
    s = sigmoid(t.logits)
    above = s + t.bias
    experts = t.experts or [e if above[e] > 0 else -1 for e in best(above, t.layer.top_k)]
    return experts, np.array([s[e] if e >= 0 else 0.0 for e in experts]), s / s.sum()


def remoe(t):
    """ReMoE (Wang et al. 2024), Eq. 6: R(x) = ReLU(x W), here of the K largest."""
    r = np.maximum(t.logits, 0)
    experts = t.experts or [e if r[e] > 0 else -1 for e in best(t.logits, t.layer.top_k)]
    total = r.sum() or 1.0
    return experts, np.array([r[e] if e >= 0 else 0.0 for e in experts]), r / total


def llama4(t):
    """Llama 4's code: the top k logits, and the sigmoid of each, with which the expert's *input*
    is multiplied.
    """
    experts = t.chosen(t.logits)
    s = sigmoid(t.logits)
    return experts, s[experts], s / s.sum()


def only_kept_groups(t, preference, group_score):
    """The preference, -inf outside the groups of experts that score best."""
    if t.layer.kept_expert_groups is None:
        return preference
    groups = np.split(np.arange(len(preference)), t.layer.expert_groups)
    scores = [group_score(preference[members]) for members in groups]
    limited = np.full(len(preference), -np.inf)
    for q in best(scores, t.layer.kept_expert_groups):
        limited[groups[q]] = preference[groups[q]]
    return limited


def deepseek_v2(t):
    """DeepSeek-V2, Eq. 20-22 and section 2.2.2: softmax; the M devices that hold the largest
    scores; top K of their experts; not divided by the sum.
    """
    s = softmax(t.logits)
    experts = t.chosen(only_kept_groups(t, s, max))
    return experts, s[experts] * (t.layer.weight_scale or 1.0), s


def deepseek_v3(t, scale=2.5):
    """DeepSeek-V3, Eq. 12-16 and section 2.1.2 (node-limited routing), with the details of its
    code: a group scores the sum of its best two biased scores; the weights come from the scores
    without bias, over (their sum + 1e-20), times ``routed_scaling_factor``.
    """
    s = sigmoid(t.logits)
    best_two = only_kept_groups(t, s + t.bias, lambda scores: sum(sorted(scores)[-2:]))
    experts = t.chosen(best_two)
    weights = s[experts] / (s[experts].sum() + 1e-20)
    return experts, weights * (t.layer.weight_scale or scale), s / s.sum()


def glm4_moe(t):
    """GLM-4.5's code is DeepSeek-V3's, and so is the factor in its large model."""
    return deepseek_v3(t)


def minimax_m2(t):
    """MiniMax-M2's code: top k of sigmoid + bias, the unbiased scores over their sum. With the bias
    on the logits: top k of sigmoid(logit + bias).
    """
    s = sigmoid(t.logits)
    on_logits = t.layer.bias_on == "logits"
    experts = t.chosen(sigmoid(t.logits + t.bias) if on_logits else s + t.bias)
    return experts, s[experts] / s[experts].sum(), s / s.sum()


def flint(t):
    """Flint's code: top k of sigmoid, over their sum; without a bias as MiniMax-M2."""
    return minimax_m2(t)


def ernie4_5(t):
    """ERNIE 4.5's code: top k of softmax + bias, the unbiased scores over max(sum, 1e-12)."""
    s = softmax(t.logits)
    experts = t.chosen(s + t.bias)
    return experts, s[experts] / max(s[experts].sum(), 1e-12), s


def base(t):
    """Lewis et al. 2021, Eq. 1: the weight is sigmoid(x w_a). At test time, the best expert."""
    experts = t.chosen(t.logits)
    s = sigmoid(t.logits)
    return experts, s[experts], s / s.sum()


def sinkhorn(t):
    """Clark et al. 2022: the plan chooses in training, the logits else; weights are a softmax."""
    p = softmax(t.logits)
    experts = t.chosen(t.logits)
    return experts, p[experts], p


def murmur_finaliser(h):
    """The last lines of MurmurHash3 (fmix32), by Austin Appleby."""
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def hashed(t):
    """Roller et al. 2021, section 3.2: a fixed expert for each id; more take the ones after it."""
    E, K = len(t.logits), t.layer.top_k
    experts = [(murmur_finaliser(t.id) + k) % E for k in range(K)]
    return experts, np.full(K, 1 / K), np.full(E, 1 / E)


def hashed_and_weighed(t):
    """DeepSeek-V4's code: experts by id, weights sqrt(softplus) of their logits over their sum."""
    s = np.sqrt(softplus(t.logits))
    experts, _, _ = hashed(t)
    return experts, s[experts] / s[experts].sum(), s / s.sum()


def tabled_and_weighed(t):
    """DeepSeek-V4's code, with a table in which the most frequent id without experts gets the K
    that have least so far; ids without a count go by their hash.
    """
    counts, E, K = t.layer.token_counts or (), len(t.logits), t.layer.top_k
    table, load = {}, dict.fromkeys(range(E), 0)
    for i in sorted(range(len(counts)), key=lambda i: (-counts[i], i)):
        if counts[i] > 0:
            table[i] = sorted(load, key=lambda e: (load[e], e))[:K]
            for e in table[i]:
                load[e] += counts[i]
    s = np.sqrt(softplus(t.logits))
    experts = table.get(t.id, hashed(t)[0])
    return experts, s[experts] / s[experts].sum(), s / s.sum()


def randomly(t):
    """Zuo et al. 2021 (THOR): K experts at random, all of the same weight."""
    E, K = len(t.logits), t.layer.top_k
    return t.chosen(t.uniform), np.full(K, 1 / K), np.full(E, 1 / E)


TOKENS_CHOOSE = {
    "dense": mixture_of_all,
    "top_k": top_k,
    "noisy_top_k": noisy_top_k,
    "switch": switch,
    "gshard": gshard,
    "v_moe": v_moe,
    "mixtral": softmax_of_top_logits,
    "deepseek_moe": softmax_then_top_k,
    "qwen2_moe": softmax_then_top_k,
    "qwen3_moe": softmax_top_k_renormalised,
    "olmoe": softmax_then_top_k,
    "jamba": softmax_then_top_k,
    "granite": softmax_of_top_logits,
    "gpt_oss": softmax_of_top_logits,
    "dynamic_top_p": dynamic_top_p,
    "expert_threshold": expert_threshold,
    "remoe": remoe,
    "llama4": llama4,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "glm4_moe": glm4_moe,
    "minimax_m2": minimax_m2,
    "flint": flint,
    "ernie4_5": ernie4_5,
    "base": base,
    "sinkhorn": sinkhorn,
    "hash": hashed,
    "hash_weighted": hashed_and_weighed,
    "hash_balanced": tabled_and_weighed,
    "random": randomly,
}
WEIGH_INPUTS = {"llama4"}


def base_assignment(layer, logits_SE, real):
    """Lewis et al. 2021, Eq. 2-3: the assignment with the largest sum of scores, S / E tokens to
    every expert (padding fills places that are left), by the Hungarian method.
    """
    S, E = logits_SE.shape
    expert_of_place = np.repeat(np.arange(E), math.ceil(S / E))
    rows, places = linear_sum_assignment(logits_SE[real][:, expert_of_place], maximize=True)
    return {real[row]: [int(expert_of_place[p])] for row, p in zip(rows, places, strict=True)}


def sinkhorn_plan(layer, logits_SE, real):
    """Clark et al. 2022, appendix B.2.1: exp(logits), its columns and rows normalised in turn."""
    plan = np.exp(logits_SE[real])
    for _ in range(layer.rounds):
        plan *= len(real) / plan.shape[1] / plan.sum(0)
        plan /= plan.sum(1, keepdims=True)
    return {s: best(row, layer.top_k) for s, row in zip(real, plan, strict=True)}


GROUP_CHOOSES = {"base": base_assignment, "sinkhorn": sinkhorn_plan}


# Who gets a slot.


def capacity(tokens, top_k, experts, factor):
    """Fedus et al. 2021, Eq. 3, rounded up."""
    return max(1, min(tokens, math.ceil(factor * tokens * top_k / experts - 1e-6)))


def seats(layer, experts, weights, experts_with_slots):
    """Lepikhin et al. 2020, Algorithm 1: all first choices before any second, in the order of the
    tokens. Riquelme et al. 2021 (batch prioritised routing): tokens of the largest weight first.

    ``experts`` and ``weights`` by token, padding left out. Experts without computation have room
    for all. Returns the (token, k) that got a slot.
    """
    order = sorted(experts)
    if layer.seating == "priority":
        order.sort(key=lambda s: -max(weights[s]))
    taken, seated = {}, set()
    for k in range(layer.top_k):
        for s in order:
            e = experts[s][k]
            full = e < experts_with_slots and taken.get(e, 0) >= layer.slots
            if e >= 0 and not full:
                taken[e] = taken.get(e, 0) + 1
                seated.add((s, k))
    return seated


def capacity_aware(score_SE, preference_SE, real, top_k, candidates, slots):
    """He et al. 2025, as in the authors' code: every token proposes its best ``candidates``; a full
    expert keeps its ``slots`` highest scores; a token takes its best ``top_k`` of those that keep
    it, -1 for none.
    """
    S, E = score_SE.shape
    proposed = {s: best(preference_SE[s], candidates) for s in range(S) if real[s]}
    kept = set()
    for e in range(E):
        asking = [s for s in proposed if e in proposed[s]]
        kept |= {(asking[i], e) for i in best(score_SE[asking, e], slots)}
    found = np.full((S, top_k), -1)
    for s in proposed:
        mine = [e for e in proposed[s] if (s, e) in kept][:top_k]
        found[s, : len(mine)] = mine
    return found


# Experts.


def feed_forward(gate, up, down, x):
    """SwiGLU (Shazeer 2020): (silu(x W_gate) * x W_up) W_down."""
    g = x @ gate
    return (g * sigmoid(g) * (x @ up)) @ down


def expert(params, layer, e, x):
    """Expert ``e`` on one token; after the real ones, identity and null experts (Jin et al. 2024,
    Eq. 3-4).
    """
    real = params["w_up_EDF"].shape[0]
    if e >= real:
        return x if e < real + layer.identity_experts else 0 * x
    return feed_forward(*(params[name][e] for name in ("w_gate_EDF", "w_up_EDF", "w_down_EFD")), x)


def shared(params, x):
    """Shared experts as one, times sigmoid(x w) where there is a gate (Qwen2-MoE)."""
    own, gate = params.get("shared"), params.get("w_shared_gate_D1")
    if own is None:
        return np.zeros_like(x)
    y = feed_forward(own["w_gate_DF"], own["w_up_DF"], own["w_down_FD"], x)
    return y if gate is None else y * sigmoid(x @ gate)[0]


# Groups.


@dataclass
class Group:
    """What became of the tokens of one group; zeros at padding."""

    y_SD: np.ndarray
    real_S: np.ndarray
    log_z_S: np.ndarray
    asked_SE: np.ndarray
    seated_SE: np.ndarray
    weight_SE: np.ndarray
    probability_SE: np.ndarray
    counted_SE: np.ndarray
    """What the balance losses count: choices as if there were no selection bias."""
    smooth_SE: np.ndarray | None = None
    plan: object = None
    """The discrete part, to be kept."""

    @classmethod
    def empty(cls, x_SD, real_S, logits_SE):
        log_z = [log_sum_exp(row) if r else 0 for row, r in zip(logits_SE, real_S, strict=True)]
        zeros = [np.zeros(logits_SE.shape) for _ in range(5)]
        return cls(np.zeros_like(x_SD), real_S, np.array(log_z), *zeros)

    @property
    def real(self):
        return [int(s) for s in np.flatnonzero(self.real_S)]


def tokens_choose(layer, params, x_SD, real_S, tokens, plan):
    """A group whose tokens choose. The plan: the experts of each token, and the seats."""
    logits_SE = np.stack([t.logits for t in tokens])
    group = Group.empty(x_SD, real_S, logits_SE)
    fixed = plan[0] if plan else {}
    if not plan and layer.training and layer.router in GROUP_CHOOSES:
        fixed = GROUP_CHOOSES[layer.router](layer, logits_SE, group.real)
    experts, weights = {}, {}
    for s in group.real:
        token = replace(tokens[s], experts=fixed.get(s))
        chosen = TOKENS_CHOOSE[layer.router](token)
        experts[s], weights[s], group.probability_SE[s] = chosen
    if layer.router == "noisy_top_k" and tokens[0].normal is not None:
        group.smooth_SE = np.zeros_like(logits_SE)
        for s in group.real:
            group.smooth_SE[s] = smooth_load(tokens[s])
    seated = plan[1] if plan else seats(layer, experts, weights, len(params["w_up_EDF"]))
    group.plan = experts, seated
    for s in group.real:
        for k, e in enumerate(experts[s]):
            if e >= 0:
                visit(group, layer, params, x_SD, s, e, weights[s][k], (s, k) in seated)
        group.counted_SE[s] = group.asked_SE[s]
        if tokens[s].bias.any():  # DeepSeek-V3, Eq. 18: the top K of the scores without it
            group.counted_SE[s] = 0
            group.counted_SE[s, best(group.probability_SE[s], layer.top_k)] = 1
    return group


def visit(group, layer, params, x_SD, s, e, weight, seated):
    """Token ``s`` asks for expert ``e``, and may get it."""
    group.asked_SE[s, e] += 1
    group.weight_SE[s, e] += weight
    if not seated:
        return
    group.seated_SE[s, e] += 1
    if layer.router in WEIGH_INPUTS:
        group.y_SD[s] += expert(params, layer, e, weight * x_SD[s])
    else:
        group.y_SD[s] += weight * expert(params, layer, e, x_SD[s])


def experts_choose(layer, params, x_SD, real_S, tokens, plan):
    """Zhou et al. 2022, section 3.2: S = softmax(X W); each expert takes its top k of S transposed.

    Every token that an expert takes has a slot. The plan: who took whom.
    """
    group = Group.empty(x_SD, real_S, np.stack([t.logits for t in tokens]))
    for s in group.real:
        group.probability_SE[s] = softmax(tokens[s].logits)
    group.plan = plan or taken_tokens(layer, group.probability_SE, group.real)
    for s, e in group.plan:
        visit(group, layer, params, x_SD, s, e, group.probability_SE[s, e], seated=True)
    group.counted_SE = group.asked_SE
    return group


def taken_tokens(layer, score_SE, real):
    """The (token, expert) that experts take. Under a cap (Zhou et al. 2022, section 3.3), they take
    the top k of A; a token that has more than the cap then keeps those of largest A.
    """
    wanted_SE, cap = score_SE, layer.max_experts_per_token
    if cap is not None:
        slots = min(layer.slots, len(real))
        wanted_SE = np.zeros_like(score_SE)
        wanted_SE[real] = capped_assignment(score_SE[real], slots, cap, layer.temperature)
    taken = set()
    for e in range(score_SE.shape[1]):
        taken |= {(real[i], e) for i in best(wanted_SE[real, e], layer.slots)}
    for s in real if cap is not None else []:
        mine = [e for e in range(score_SE.shape[1]) if (s, e) in taken]
        taken -= {(s, mine[i]) for i in best(wanted_SE[s, mine], len(mine))[cap:]}
    return taken


def capped_assignment(score_TE, slots, cap, temperature):
    """Zhou et al. 2022, Eq. 3: max <S, A> + temperature * H(A), A in [0, 1], every expert with
    exactly ``slots`` tokens, every token with at most ``cap`` experts.

    By its dual, a smooth convex function of a price u of each expert and v >= 0 of each token:
    A = min(1, exp((S + u - v) / temperature - 1)). The temperature falls step by step.
    """
    T, E = score_TE.shape

    def assignment(prices, heat):
        z = (score_TE + prices[:E] - prices[E:, None]) / heat
        return z, np.exp(np.minimum(z, 1) - 1)

    def dual(prices, heat):
        z, a = assignment(prices, heat)
        value = heat * np.where(z < 1, a, z).sum() - slots * prices[:E].sum()
        slope = np.concatenate([a.sum(0) - slots, cap - a.sum(1)])
        return value + cap * prices[E:].sum(), slope

    prices, bounds = np.zeros(E + T), [(None, None)] * E + [(0, None)] * T
    options = {"maxiter": 10000, "maxfun": 100000, "ftol": 1e-14, "gtol": 1e-8}
    for heat in temperature * 4.0 ** np.arange(3, -1, -1):
        prices = minimize(
            dual, prices, (heat,), "L-BFGS-B", jac=True, bounds=bounds, options=options
        ).x
    return assignment(prices, temperature)[1]


def slots_mix(layer, params, x_SD, real_S, plan):
    """Puigcerver et al. 2023, Eq. 1-2 and section 2.3: X and Phi over their norms, times a scale.

    D: softmax of X Phi over the tokens. C: softmax over all slots. Y = C f(D^T X). The plan: how
    much of each token every expert holds, which counts as load and has no gradient.
    """
    D, E, C = params["w_router_DEC"].shape
    phi = params["w_router_DEC"].reshape(D, E * C)
    phi = params["router_scale"] * phi / np.sqrt((phi**2).sum(0))
    logits = x_SD / np.sqrt((x_SD**2).sum(1, keepdims=True)) @ phi
    logits_SE = [[log_sum_exp(slots) for slots in row.reshape(E, C)] for row in logits]
    group = Group.empty(x_SD, real_S, np.array(logits_SE))
    combine = np.zeros_like(logits)
    for s in group.real:
        combine[s] = softmax(logits[s])
        group.weight_SE[s] = combine[s].reshape(E, C).sum(1)
    group.probability_SE = group.weight_SE
    for slot in range(E * C if group.real else 0):
        dispatch = np.zeros(len(x_SD))
        dispatch[group.real] = softmax(logits[group.real, slot])
        y = expert(params, layer, slot // C, dispatch @ x_SD)
        group.y_SD += np.outer(combine[:, slot], y)
        group.asked_SE[:, slot // C] += dispatch
    group.plan = group.asked_SE if plan is None else plan
    group.asked_SE = group.counted_SE = group.seated_SE = group.plan
    return group


# The layer.


def run(layer, params, x_GSD, real_GS, draws=None, bias_E=None, id_GS=None, plan=None):
    """A routed layer on groups: a ``Group`` for each. ``plan``: those of an earlier run, to keep.

    A token with a logit that is not finite is padding to its group.
    """
    groups = []
    for g, (x_SD, real_S) in enumerate(zip(x_GSD, real_GS, strict=True)):
        ids = None if id_GS is None else id_GS[g]
        kept = None if plan is None else plan[g]
        tokens = score(layer, params, x_SD, draws or Draws(), bias_E, ids, g)
        good_S = np.array([np.isfinite(t.logits).all() for t in tokens])
        if layer.router == "soft":
            group = slots_mix(layer, params, x_SD, real_S, kept)
        elif layer.router == "expert_choice":
            group = experts_choose(layer, params, x_SD, real_S & good_S, tokens, kept)
        else:
            group = tokens_choose(layer, params, x_SD, real_S & good_S, tokens, kept)
        group.y_SD += np.stack([shared(params, x) for x in x_SD])
        groups.append(group)
    return groups


def score(layer, params, x_SD, draws, bias_E, id_S, g):
    """The logits of each token of group ``g``, and what else a router may look at."""
    E = params["w_up_EDF"].shape[0] + layer.identity_experts + layer.null_experts
    w_router = params.get("w_router_DE", np.zeros((x_SD.shape[1], E)))
    tokens = []
    if draws.disturbance_GSD is not None:
        x_SD = x_SD * draws.disturbance_GSD[g]
    for s, x in enumerate(x_SD):
        token = Token(layer, x @ w_router + params.get("b_router_E", 0), np.zeros(E))
        token.bias = token.bias if bias_E is None else bias_E
        token.noise = x @ params["w_noise_DE"] if "w_noise_DE" in params else None
        token.normal = None if draws.normal_GSE is None else draws.normal_GSE[g, s]
        token.coins = None if draws.coin_GSK is None else draws.coin_GSK[g, s]
        token.uniform = None if draws.uniform_GSE is None else draws.uniform_GSE[g, s]
        token.id = None if id_S is None else int(id_S[s])
        tokens.append(token)
    return tokens


# Losses, of the tokens of one layer and scope.


@dataclass
class Tokens:
    """Real tokens: arrays [T, E], and [T]."""

    asked: np.ndarray
    counted: np.ndarray
    probability: np.ndarray
    weight: np.ndarray
    log_z: np.ndarray
    smooth: np.ndarray | None


def tokens_of(groups, first=0, last=None):
    """The real tokens of some groups, from place ``first`` to ``last`` (padding counts along)."""
    real = np.concatenate([g.real_S for g in groups])[first:last]

    def all_of(name):
        values = [getattr(g, name) for g in groups]
        return None if values[0] is None else np.concatenate(values)[first:last][real]

    names = ("asked_SE", "counted_SE", "probability_SE", "weight_SE", "log_z_S", "smooth_SE")
    return Tokens(*(all_of(name) for name in names))


def switch_balance(t):
    """Fedus et al. 2021, Eq. 4-6: N sum_i f_i P_i. For K > 1, f_i is the share of all choices."""
    T, E = t.asked.shape
    loss = 0.0
    for i in range(E):
        f = t.counted[:, i].sum() / max(t.counted.sum(), 1)
        loss += E * f * t.probability[:, i].sum() / max(T, 1)
    return loss


def deepseek_expert_balance(t, top_k):
    """DeepSeek-V2, Eq. 23-25, and DeepSeek-V3, Eq. 17-20 (of a sequence): sum_i f_i P_i, where
    f_i = N / (K T) * the tokens that chose expert i.
    """
    T, N = t.asked.shape
    f = [N / (top_k * T) * sum(t.counted[s, i] for s in range(T)) for i in range(N)]
    p = [sum(t.probability[s, i] for s in range(T)) / T for i in range(N)]
    return sum(f[i] * p[i] for i in range(N))


def hf_balance(layers):
    """transformers' ``load_balancing_loss_func``: one-hot [layers * tokens, K, E], its mean over
    tokens, times the mean router probability, summed, times E. (K is as large as it may need.)
    """
    mask, probability = [], []
    for t in layers:
        for asked, p in zip(t.counted, t.probability, strict=True):
            one_hot = np.zeros((len(asked), len(asked)))
            for k, e in enumerate(np.flatnonzero(asked)):
                one_hot[k, e] = asked[e]  # 1, unless slots take mixtures of tokens
            mask.append(one_hot)
            probability.append(p)
    tokens_per_expert = np.mean(mask, axis=0)
    router_prob_per_expert = np.mean(probability, axis=0)
    return (tokens_per_expert * router_prob_per_expert[None]).sum() * len(probability[0])


def z_loss(t):
    """Zoph et al. 2022, Eq. 5: the mean of (log sum exp)^2."""
    return sum(z**2 for z in t.log_z) / max(len(t.log_z), 1)


def cv_squared(values):
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / len(values) / mean**2


def importance_loss(t):
    """Shazeer et al. 2017, Eq. 6-7: CV(sum over the batch of G(x))^2."""
    return cv_squared(t.weight.sum(0))


def load_loss(t):
    """Shazeer et al. 2017, Eq. 10-11: CV(Load(X))^2, Load(X)_i = sum of P(x, i)."""
    return cv_squared(t.smooth.sum(0))


def device_loss(t, devices, top_k):
    """DeepSeek-V2, Eq. 26-28: sum_i f'_i P'_i, f' the mean f of a device's experts, P' the sum."""
    T, N = t.asked.shape
    loss = 0.0
    for members in np.split(np.arange(N), devices):
        f = [N / (top_k * T) * t.asked[:, j].sum() for j in members]
        loss += sum(f) / len(members) * sum(t.probability[:, j].sum() / T for j in members)
    return loss


def communication_loss(t, devices, limit):
    """DeepSeek-V2, Eq. 29-31: f''_i = D / (M T) * the tokens sent to device i, P'' as above."""
    T, N = t.asked.shape
    loss = 0.0
    for members in np.split(np.arange(N), devices):
        sent = sum(1 for s in range(T) if t.asked[s, members].sum() > 0)
        loss += devices / (limit * T) * sent * sum(t.probability[:, j].sum() / T for j in members)
    return loss


# The bias of the loss-free balance.


def sign_update(bias, counts, rate):
    """Wang et al. 2024, Algorithm 1: b_i += u * sign(mean of c - c_i)."""
    return [b + rate * np.sign(np.mean(counts) - c) for b, c in zip(bias, counts, strict=True)]


def longcat_update(bias, counts, mu, experts, top_k, per_token):
    """LongCat-Flash (2025), section 2.1: b_i += mu (K_e / K * 1 / N - T_i / (K T_all)) for the N
    experts that compute; the others keep theirs. All K choices of a token are in ``counts``.
    """
    share = np.array(counts) / np.sum(counts)
    wanted = per_token / top_k / experts
    return [b + mu * (wanted - share[i]) * (i < experts) for i, b in enumerate(bias)]


def pid_updates(begin, counts, targets, rate, p, d, limit):
    """The bias after each step under textbook PID control of one expert: the sum of what it
    lacked, as a share of its target; p and d times that and its change. The sum is not moved out
    of its limit.
    """
    total, before, found = begin, 0.0, []
    for count, target in zip(counts, targets, strict=True):
        error = (target - count) / target
        moved = total + rate * error
        if not -limit <= moved <= limit:  # only back, or as far as the limit
            inside = max(min(moved, max(limit, total)), min(-limit, total))
            moved = inside
        total = moved
        found.append(total + rate * p * error + rate * d * (error - before))
        before = error
    return found


def proportional_update(bias, counts, rate):
    """Wang et al. 2024, section 4.3: b_i += u * e_i; here e_i is a share of the mean count."""
    mean = np.mean(counts)
    return [b + rate * (mean - c) / mean for b, c in zip(bias, counts, strict=True)]


def centred(bias):
    return np.asarray(bias) - np.mean(bias)


def quantile_update(score_TE, bias, top_k):
    """Quantile balancing (Su 2026): alpha is the (K+1)-th largest biased score of each token; with
    the n = T K / E smallest alpha - s_i covered by b_i, n tokens want expert i.

    Returns the n-th and the (n+1)-th smallest: any bias between them will do.
    """
    T, E = score_TE.shape
    alpha = [sorted(score + bias)[-(top_k + 1)] for score in score_TE]
    wanted, low, high = math.ceil(T * top_k / E), [], []
    for i in range(E):
        margins = sorted(alpha[s] - score_TE[s, i] for s in range(T))
        low.append(margins[wanted - 1])
        high.append(margins[wanted])
    return np.array(low), np.array(high)


def threshold_of(score_TE, wanted):
    """Two neighbouring scores of each expert, between which a threshold lets through the share
    ``wanted`` / E of the tokens (Sun et al. 2026).
    """
    T, E = score_TE.shape
    falling = -np.sort(-score_TE, axis=0)
    n = math.floor(T * wanted / E)
    return falling[n], falling[n - 1]


# Gradients.


def flat(params, at=""):
    """Nested dicts of arrays as one dict: {"shared/w_up_DF": ...}."""
    found = {}
    for name, value in params.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{at}{name}/") if inner else {at + name: np.asarray(value)}
    return found


def moved(params, name, step):
    """The nested dict with one array moved."""
    first, _, rest = name.partition("/")
    value = moved(params[first], rest, step) if rest else params[first] + step
    return params | {first: value}


def slope(function, params, name, direction, step=1e-5):
    """The derivative of ``function(params)`` as one array moves, by central differences."""
    up, down = (function(moved(params, name, sign * step * direction)) for sign in (1, -1))
    return (up - down) / (2 * step)
