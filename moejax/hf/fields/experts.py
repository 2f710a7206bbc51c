"""Shared experts and groups of experts."""

from moejax.config.checks import check, shorten
from moejax.config.model import ModelConfig
from moejax.hf.fields.translation import Fields, Translation


def _read_shared_expert(hf: Fields) -> Fields:
    width, each = hf["shared_expert_intermediate_size"], hf["moe_intermediate_size"]
    check(
        width > 0 and width % each == 0,
        f"shared_expert_intermediate_size {width} must be a multiple of moe_intermediate_size"
        f" {each}.",
    )
    return {"moe.shared_experts": width // each}


shared_expert = Translation(
    _read_shared_expert,
    lambda model: {
        "shared_expert_intermediate_size": model.moe.shared_experts * model.moe.hidden_size
    },
)


def _read_group_method(hf: Fields) -> Fields:
    method = hf["topk_method"]
    if method == "group_limited_greedy":
        return {"moe.expert_groups": hf["n_group"], "moe.kept_expert_groups": hf["topk_group"]}
    check(
        method == "greedy",
        f"topk_method {shorten(method)} is not supported: only greedy and group_limited_greedy"
        f" are.",
    )
    return {}


def _write_group_method(model: ModelConfig) -> Fields:
    groups, kept = model.moe.expert_groups, model.moe.kept_expert_groups
    if kept is None:
        return {"topk_method": "greedy", "n_group": 1, "topk_group": 1}
    return {"topk_method": "group_limited_greedy", "n_group": groups, "topk_group": kept}


group_method = Translation(_read_group_method, _write_group_method)
