"""Shared experts and groups of experts."""

from moejax.config.checks import check, shorten
from moejax.config.model import ModelConfig
from moejax.hf.fields.translation import Fields, Translation


def shared_width(field: str, each: str = "moe_intermediate_size", least: int = 1) -> Translation:
    """A field with the width of the shared experts together; 0, if that is allowed, means none."""

    def read(hf: Fields) -> Fields:
        width, size = hf[field], hf[each]
        check(width >= least, f"{field} is {shorten(width)}: it must be at least {least}.")
        if width % size == 0:
            return {"moe.shared_experts": width // size}
        return {"moe.shared_experts": 1, "moe.shared_hidden_size": width}

    return Translation(read, lambda model: {field: model.moe.shared_width})


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
