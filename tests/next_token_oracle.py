"""DeepSeek-V3 with its layers that predict further tokens, in float64 numpy, straight from the
tensors of a checkpoint: the formulas of the report (2024, sections 2.1 and 2.2) and of its released
code. One document at a time, one token after the other where that is plainer.
"""

import numpy as np
from oracle import sigmoid


def rms(x, scale, epsilon=1e-6):
    """RMSNorm."""
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + epsilon) * scale


def log_softmax(x):
    """Of the last dimension."""
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def turn(x, theta):
    """Rotate the pairs (0, 1), (2, 3), ... of the vectors at positions 0, 1, ..., [N, ..., R]."""
    R = x.shape[-1]
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(0, R, 2) / R)
    turns = np.exp(1j * angle).reshape(len(x), *[1] * (x.ndim - 2), R // 2)
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * turns
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


class DeepSeek:
    """A model: its ``config.json``, and its tensors by name."""

    def __init__(self, hf, tensors):
        self.hf = hf
        self.w = {name: x.astype(np.float64) for name, x in tensors.items()}

    def network(self, at, x):
        """A SwiGLU network."""
        gate, up, down = (self.w[f"{at}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        inner = gate @ x
        return down @ (inner * sigmoid(inner) * (up @ x))

    def choose(self, at, x):
        """Experts and their weights."""
        hf, s = self.hf, sigmoid(self.w[f"{at}.gate.weight"] @ x)
        biased = s + self.w[f"{at}.gate.e_score_correction_bias"]
        groups = biased.reshape(hf["n_group"], -1)
        kept = np.argsort(-np.sort(groups, 1)[:, -2:].sum(1))[: hf["topk_group"]]
        open_ = np.repeat(np.isin(np.arange(hf["n_group"]), kept), groups.shape[1])
        experts = np.argsort(-np.where(open_, biased, -np.inf))[: hf["num_experts_per_tok"]]
        return experts, s[experts] / (s[experts].sum() + 1e-20) * hf["routed_scaling_factor"]

    def feed_forward(self, at, x):
        """Of one token."""
        if f"{at}.gate.weight" not in self.w:
            return self.network(at, x)
        parts = [
            w * self.network(f"{at}.experts.{e}", x)
            for e, w in zip(*self.choose(at, x), strict=True)
        ]
        return sum(parts) + self.network(f"{at}.shared_experts", x)

    def attention(self, at, x):
        """Latent attention of all positions, each on those before it."""
        hf, w = (
            self.hf,
            {n.removeprefix(f"{at}."): t for n, t in self.w.items() if n.startswith(at)},
        )
        H, nope, rank = hf["num_attention_heads"], hf["qk_nope_head_dim"], hf["kv_lora_rank"]
        q = rms(x @ w["q_a_proj.weight"].T, w["q_a_layernorm.weight"]) @ w["q_b_proj.weight"].T
        q = q.reshape(len(x), H, -1)
        latent = x @ w["kv_a_proj_with_mqa.weight"].T
        kv = rms(latent[:, :rank], w["kv_a_layernorm.weight"]) @ w["kv_b_proj.weight"].T
        kv = kv.reshape(len(x), H, -1)
        scores = np.einsum("nhd,mhd->hnm", q[..., :nope], kv[..., :nope])
        q_turned, k_turned = (turn(v, hf["rope_theta"]) for v in (q[..., nope:], latent[:, rank:]))
        scores += np.einsum("nhr,mr->hnm", q_turned, k_turned)
        seen = np.tril(np.ones(scores.shape[1:], bool))
        p = np.exp(log_softmax(np.where(seen, scores / np.sqrt(q.shape[-1]), -np.inf)))
        y = np.einsum("hnm,mhu->nhu", p, kv[..., nope:]).reshape(len(x), -1)
        return y @ w["o_proj.weight"].T

    def block(self, layer, x):
        """One layer."""
        at = f"model.layers.{layer}"
        x = x + self.attention(f"{at}.self_attn", rms(x, self.w[f"{at}.input_layernorm.weight"]))
        normed = rms(x, self.w[f"{at}.post_attention_layernorm.weight"])
        return x + np.stack([self.feed_forward(f"{at}.mlp", row) for row in normed])

    def states(self, tokens):
        """What the output head reads for each position: the model's own [N, D], then that of each
        layer that looks further ahead, one position shorter each.
        """
        embedded = self.w["model.embed_tokens.weight"][tokens]
        x = embedded
        for layer in range(self.hf["num_hidden_layers"]):
            x = self.block(layer, x)
        found = [rms(x, self.w["model.norm.weight"])]
        for k in range(1, self.hf["num_nextn_predict_layers"] + 1):
            layer = self.hf["num_hidden_layers"] + k - 1
            at = f"model.layers.{layer}"
            hidden = rms(found[-1][:-1], self.w[f"{at}.hnorm.weight"])
            token = rms(embedded[k:], self.w[f"{at}.enorm.weight"])
            x = np.concatenate([token, hidden], -1) @ self.w[f"{at}.eh_proj.weight"].T
            found.append(rms(self.block(layer, x), self.w[f"{at}.shared_head.norm.weight"]))
        return found

    def logits(self, tokens):
        """Of ``states``, [N, V] each."""
        return [x @ self.w["lm_head.weight"].T for x in self.states(tokens)]

    def sums(self, documents):
        """Over documents (a document's last token is a target alone): the cross-entropy of the
        model and of each further layer, how many targets each has, and how often a layer's best
        token is the model's own.
        """
        nats, targets, same = 0.0, 0, 0
        for document in documents:
            logits = self.logits(document[:-1])
            best = [x.argmax(-1) for x in logits]
            wanted = [document[1 + k :] for k in range(len(logits))]
            pairs = zip(map(log_softmax, logits), wanted, strict=True)
            nats += np.array([-x[np.arange(len(t)), t].sum() for x, t in pairs])
            targets += np.array([len(t) for t in wanted])
            same += np.array([(b == best[0][k:]).sum() for k, b in enumerate(best)])
        return nats, targets, same

    def loss(self, documents, weight):
        """Cross-entropy a target, plus ``weight`` times the mean over the further layers."""
        nats, targets, _ = self.sums(documents)
        mean = nats / targets
        return mean[0] + weight * mean[1:].mean()
