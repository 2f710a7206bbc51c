"""Hunyuan-A13B: norms of queries and keys after rotation, a shared expert as wide as the others."""

from moejax.config.checks import check, shorten
from moejax.config.model import ModelConfig
from moejax.hf.families.family import (
    ALL_BIASES,
    ALWAYS,
    EXPERTS,
    GIVEN,
    GROUPED_QUERIES,
    NORMS,
    SIZES,
    SWIGLU,
    Family,
    network_rules,
)
from moejax.hf.fields import attention, positions
from moejax.hf.fields.translation import Fields, Translation
from moejax.hf.tensors import Rule


def _read_one(hf: Fields, field: str) -> int:
    """A number, or a list of one for each layer, which must be all the same."""
    value = hf[field]
    each = value if isinstance(value, list) else [value]
    same = bool(each) and all(type(x) is int and x == each[0] for x in each)
    check(same, f"{field} is {shorten(value)}: it must be the same whole number for all layers.")
    return each[0]


def _read_experts(hf: Fields) -> Fields:
    width = hf["intermediate_size"]
    for field, wanted in (("moe_intermediate_size", width), ("num_shared_expert", 1)):
        found = wanted if hf.get(field) is None else _read_one(hf, field)
        check(found == wanted, f"{field} is {found}: only {wanted} is supported.")
    numbers = {"moe.num_experts": "num_experts", "moe.top_k": "moe_topk"}
    return {path: _read_one(hf, field) for path, field in numbers.items()}


def _write_experts(model: ModelConfig) -> Fields:
    moe = model.moe
    return {"num_experts": moe.num_experts, "moe_topk": moe.top_k}


def _read_positions(hf: Fields) -> Fields:
    """With ``alpha``, positions of type dynamic have another base, and are not stretched."""
    found = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(found, dict) or not found.get("alpha"):
        return positions.rope.read(hf)
    width = attention.heads.read(hf)["head_size"]
    theta = found.get("rope_theta") or hf["rope_theta"]
    base = float(theta) * float(found["alpha"]) ** (width / (width - 2))
    return positions.rope.read(hf | {"rope_scaling": None, "rope_parameters": {"rope_theta": base}})


FAMILIES: dict[str, Family] = {
    "hunyuan_v1_moe": Family(
        architecture="HunYuanMoEV1ForCausalLM",
        fields=SIZES | {"intermediate_size": "moe.hidden_size"},
        defaults=GIVEN
        | {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "attention_bias": False}
        | {"num_experts": 1, "moe_topk": 1},
        fixed=SWIGLU | {"use_qk_norm": True, "use_cla": False},
        ours=ALWAYS
        | {"moe.router": "mixtral", "moe.shared_experts": 1, "moe.balance.loss_weight": 0.0}
        | {"attention.qk_norm_place": "after_rotation"},
        translations=(
            Translation(_read_positions, positions.rope.write),
            attention.heads,
            attention.attention_bias,
            Translation(_read_experts, _write_experts),
        ),
        tensors=(
            *NORMS,
            *GROUPED_QUERIES,
            *ALL_BIASES,
            Rule("self_attn.query_layernorm.weight", "attention/query_norm/scale_D"),
            Rule("self_attn.key_layernorm.weight", "attention/key_norm/scale_D"),
            Rule("mlp.gate.wg.weight", "moe/w_router_DE", transpose=True),
            *EXPERTS,
            *network_rules("mlp.shared_mlp", "moe/shared"),
        ),
        synonyms=(("num_experts", "num_local_experts"), ("moe_topk", "num_experts_per_tok")),
    ),
}
