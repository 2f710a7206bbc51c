"""Shared experts, groups of experts, and the loss that balances them."""

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


def _read_sequence_loss(hf: Fields) -> Fields:
    """Transformers has no such loss; the code that DeepSeek-V2 was released with has it."""
    by_sequence = hf.get("seq_aux", True)
    return {
        "moe.balance.loss_weight": hf.get("aux_loss_alpha", 0.0),
        "moe.balance.scope": "sequence" if by_sequence else "batch",
    }


def _write_sequence_loss(model: ModelConfig) -> Fields:
    balance = model.moe.balance
    weight = coefficient_by_layer(model)
    return {"aux_loss_alpha": weight, "seq_aux": balance.scope == "sequence"}


sequence_loss = Translation(_read_sequence_loss, _write_sequence_loss)
"""The coefficient of the balance loss of each layer, over each sequence or the whole batch."""


def coefficient_by_layer(model: ModelConfig) -> float:
    """The coefficient of a balance loss that is 1 at balance in each layer."""
    moe, layers = model.moe, sum(model.routed_layers)
    weight = moe.balance.loss_weight
    return weight if moe.balance.convention == "switch" else weight * moe.top_k / max(1, layers)


def coefficient_of_pool(model: ModelConfig) -> float:
    """The coefficient of the balance loss of Hugging Face's models, K at balance over all layers,
    that gives as much as the model's own where its layers are alike.
    """
    moe, layers = model.moe, sum(model.routed_layers)
    weight = moe.balance.loss_weight
    return weight if moe.balance.convention == "hf" else weight * layers / moe.top_k
