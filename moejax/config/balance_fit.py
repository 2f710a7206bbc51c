"""What balancing needs of the router, checked before anything is compiled. ``moe`` is a
``MoEConfig``, whose file imports this one.
"""

from typing import Any

from moejax.config.checks import check, flag


def check_balance(moe: Any) -> None:
    """Losses and bias updates must find in the router what they act on."""
    at, balance, router = "--model.moe.balance", moe.balance, moe.built_router
    rule = router.token_rule
    check(
        balance.load_loss_weight == 0 or router.learns_noise,
        f"{at}.load-loss-weight needs the noise of --model.moe.router noisy_top_k: without it the"
        f" load has no gradient.",
    )
    check(
        balance.load_loss_weight == 0
        or (balance.bias_update == "none" and moe.kept_expert_groups is None and moe.top_p is None),
        f"{at}.load-loss-weight estimates choices by the noisy logits alone: it goes neither with"
        f" {at}.bias-update nor with --model.moe.kept-expert-groups or --model.moe.top-p.",
    )
    for name, needed in (("device_loss", "expert_groups"), ("communication_loss", "expert_groups")):
        check(
            getattr(balance, f"{name}_weight") == 0 or getattr(moe, needed) is not None,
            f"{flag(at[2:], name + '_weight')} needs {flag('model.moe', needed)}.",
        )
    for name in ("orthogonality_loss_weight", "coupling_loss_weight"):
        check(
            getattr(balance, name) == 0 or (router.learned and not router.slots),
            f"{flag(at[2:], name)} needs a router with one vector for each expert, which"
            f" --model.moe.router {moe.router} has not: take top_k, say.",
        )
    check(
        balance.sparsity_loss_weight == 0 or rule is not None and rule.score == "relu",
        f"{at}.sparsity-loss-weight closes ReLUs, which --model.moe.router {moe.router} has not:"
        f" take remoe.",
    )
    check_bias(moe)


def check_bias(moe: Any) -> None:
    """How the selection bias moves must suit the router's scores and choices."""
    at, balance, router = "--model.moe.balance", moe.balance, moe.built_router
    rule = router.token_rule
    wanted = balance.experts_per_token
    check(
        wanted is None or wanted <= moe.top_k,
        f"{at}.experts-per-token {wanted} is more than a token chooses, --model.moe.top-k"
        f" {moe.top_k}.",
    )
    check(
        balance.bias_update in ("none", "threshold") or rule is None or not rule.positive,
        f"{at}.bias-update {balance.bias_update}: --model.moe.router {moe.router} gives no token a"
        f" fixed number of experts: take threshold with expert_threshold, none with others.",
    )
    check(
        balance.bias_update != "threshold"
        or rule is not None
        and rule.positive
        and rule.score == "sigmoid"
        and rule.bias_on == "scores",
        f"{at}.bias-update threshold moves thresholds on scores in [0, 1]: it needs"
        f" --model.moe.router expert_threshold.",
    )
    if balance.bias_update == "none":
        return
    check(
        router.selection_bias,
        f"{at}.bias-update {balance.bias_update}: --model.moe.router {moe.router} has no selection"
        f" bias; leave it at none.",
    )
    check(
        not router.counts_tokens or moe.hash_layers is not None,
        f"{at}.bias-update {balance.bias_update}: with --model.moe.router {moe.router} a table"
        f" chooses in all layers: give --model.moe.hash-layers 1, say, or leave it at none.",
    )
    check(
        balance.bias_update != "quantile"
        or (moe.kept_expert_groups is None and moe.top_k < moe.num_choices)
        and rule is not None
        and rule.score in ("softmax", "sigmoid")
        and rule.bias_on == "scores"
        and rule.top_p is None,
        f"{at}.bias-update quantile needs scores in [0, 1] (softmax or sigmoid) to add the bias to,"
        f" fewer choices than experts, as many for each token, and no"
        f" --model.moe.kept-expert-groups: take sign.",
    )
