"""What keeps the experts of a model evenly loaded while it is trained, in words."""

from moejax.config.balance import OTHER_LOSSES
from moejax.config.config import Config
from moejax.config.model import ModelConfig

SCOPES = {"batch": "batch", "device": "device's part of a batch", "sequence": "sequence"}


def describe_balance(model: ModelConfig, moves: bool = True) -> str:
    """Its losses with their coefficients and conventions, and what becomes of its selection bias,
    which stays unless it ``moves``: one line. Empty for a dense model.
    """
    if not any(model.routed_layers):
        return ""
    moe, balance = model.moe, model.moe.balance
    parts = ["no balance loss"]
    if balance.loss_weight:
        how = f"over each {SCOPES[balance.scope]} (1 at balance in each layer)"
        if balance.convention == "hf":
            how = f"of transformers ({moe.top_k} at balance, over all layers)"
        parts = [f"{balance.loss_weight:g} x the balance loss {how}"]
    weights = {name: getattr(balance, f"{name}_weight") for name in OTHER_LOSSES}
    parts += [f"{weight:g} x the {n.replace('_', ' ')}" for n, weight in weights.items() if weight]
    if balance.moves_sparsity:
        wanted = balance.experts_per_token or moe.top_k
        parts[-1] += (
            f" at first, times or over {balance.sparsity_factor:g} a step, for {wanted:g} experts a"
            f" token"
        )
    if not balance.z_loss_weight:
        parts.append("no z loss")
    if moe.has_selection_bias:
        parts.append(f"selection bias {_describe_update(model) if moves else 'frozen'}")
    return ", ".join(parts)


def _describe_update(model: ModelConfig) -> str:
    balance = model.moe.balance
    if balance.bias_update == "none":
        return "frozen"
    if balance.bias_update == "quantile":
        return "moved to the quantile of each step"
    if balance.bias_update == "threshold":
        wanted = balance.experts_per_token or model.moe.top_k
        part = f"moved by {balance.bias_rate:g} of the way to the quantile of each step"
        return f"{part}, for {wanted:g} experts a token"
    said = f"moved by {balance.bias_rate:g} a step ({balance.bias_update})"
    if balance.experts_per_token is None:
        return said
    return f"{said} towards {balance.experts_per_token:g} experts a token"


def compare_balance(config: Config, before: ModelConfig | None) -> str:
    """The line of a run, and how it was in the model that the run begins from (``before``), if
    there is one and that is known.
    """
    said = describe_balance(config.model, config.run.lora.trains_routers)
    if not said or before is None:
        return said
    was = describe_balance(before)
    place = config.run.init_from
    return f"{said}; " + (f"as {place} has it" if was == said else f"{place} has: {was}")
