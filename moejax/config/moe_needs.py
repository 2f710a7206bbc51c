"""Which settings of experts, routers and balancing need others to have an effect: a table."""

from moejax.config.config import Config
from moejax.config.need import Need, is_routed, join_paths


def _drops(c: Config) -> bool:
    moe = c.model.moe
    return moe.capacity_factor is not None or moe.eval_capacity_factor is not None


def _looks_around(c: Config) -> bool:
    """Whether the router looks at several tokens of a group in training."""
    return not c.model.moe.built_router.causal


MOE, BALANCE = "model.moe", "model.moe.balance"
STEPS = ("sign", "proportional", "pid")
"""Updates of the selection bias by the lack of load."""

OF_MOE: tuple[Need, ...] = (
    # Layers, dense and routed.
    Need(
        ("model.dense_hidden_size",),
        lambda c: not all(c.model.routed_layers),
        "every layer being routed",
        "keep a layer dense, by --model.moe.first-dense or --model.moe.every",
    ),
    Need(
        (
            *join_paths(MOE, "num_experts expert_bias router renormalise weight_scale top_p"),
            *join_paths(
                MOE, "expert_groups kept_expert_groups max_experts_per_token identity_experts"
            ),
            *join_paths(
                MOE, "null_experts router_jitter router_dropout expert_dropout first_dense"
            ),
            *join_paths(MOE, "shared_gate group_size capacity_factor eval_capacity_factor seating"),
            *join_paths(MOE, "bias_on dispatch eval_candidates token_counts hash_layers"),
            *("model.moe.balance", "optim.router_learning_rate"),
            *join_paths("mesh", "expert_parallel chunks receive_factor"),
        ),
        is_routed,
        "--model.moe.every 0, which makes every layer dense",
        "take --model.moe.every 1",
        twin=True,
    ),
    Need(
        join_paths(MOE, "top_k hidden_size shared_experts shared_hidden_size"),
        lambda c: is_routed(c) or c.model.dense_hidden_size is None,
        "--model.moe.every 0, which makes every layer dense, and --model.dense-hidden-size",
        "take --model.moe.every 1",
        twin=True,
    ),
    Need(
        ("model.norm_place",),
        lambda c: c.model.norm_place != "pre_and_experts" or is_routed(c),
        "--model.moe.every 0, which makes every layer dense",
        "take --model.moe.every 1",
    ),
    Need(
        join_paths(MOE, "shared_gate shared_hidden_size"),
        lambda c: c.model.moe.shared_experts > 0,
        "--model.moe.shared-experts 0",
        "give --model.moe.shared-experts 1, say, too",
    ),
    Need(
        ("model.moe.expert_groups",),
        lambda c: (
            c.model.moe.kept_expert_groups is not None
            or c.model.moe.balance.device_loss_weight > 0
            or c.model.moe.balance.communication_loss_weight > 0
        ),
        "every group being kept, and no loss over groups",
        "give --model.moe.kept-expert-groups, or --model.moe.balance.device-loss-weight, too",
    ),
    Need(
        (
            *join_paths(MOE, "router_jitter router_dropout"),
            *join_paths(BALANCE, "z_loss_weight importance_loss_weight variance_loss_weight"),
            *join_paths(BALANCE, "entropy_loss_weight"),
        ),
        lambda c: c.model.moe.built_router.learned,
        "--model.moe.router {c.model.moe.router}, which learns nothing",
        "take another router, such as top_k",
    ),
    Need(
        ("optim.router_learning_rate",),
        lambda c: c.model.moe.built_router.learned or c.model.moe.shared_gate,
        "--model.moe.router {c.model.moe.router}, which learns nothing",
        "take another router, such as top_k",
    ),
    Need(
        ("model.moe.eval_capacity_factor",),
        # The same number says the same.
        lambda c: (
            not c.model.moe.built_router.experts_choose
            or c.model.moe.eval_capacity_factor == c.model.moe.capacity_factor
        ),
        "--model.moe.router {c.model.moe.router}, whose slots are a part of the model",
        "set --model.moe.capacity-factor, which holds in evaluations, too",
    ),
    Need(
        ("model.moe.group_size",),
        lambda c: _drops(c) or not c.model.moe.built_router.by_token or _looks_around(c),
        "nothing being dropped (--model.moe.capacity-factor None, --model.moe.eval-capacity-factor"
        " None)",
        "give --model.moe.capacity-factor 1.25, say, too",
        twin=True,
    ),
    Need(
        ("model.moe.seating",),
        _drops,
        "nothing being dropped (--model.moe.capacity-factor None, --model.moe.eval-capacity-factor"
        " None)",
        "give --model.moe.capacity-factor 1.25, say, too",
    ),
    Need(
        ("model.moe.eval_candidates",),
        lambda c: c.model.moe.eval_capacity_factor is not None,
        "--model.moe.eval-capacity-factor None, with which every choice has a slot",
        "give --model.moe.eval-capacity-factor 1, say, too",
    ),
    # Balance.
    Need(
        join_paths(BALANCE, "scope convention"),
        lambda c: c.model.moe.balance.loss_weight > 0,
        "--model.moe.balance.loss-weight 0",
        "give --model.moe.balance.loss-weight 0.01, say, too",
        twin=True,
    ),
    Need(
        ("model.moe.bias_on",),
        lambda c: c.model.moe.has_selection_bias,
        "no selection bias (--model.moe.balance.bias-update none)",
        "take --model.moe.balance.bias-update sign",
    ),
    Need(
        join_paths(BALANCE, "coupling_alpha"),
        lambda c: c.model.moe.balance.coupling_loss_weight > 0,
        "--model.moe.balance.coupling-loss-weight 0",
        "give --model.moe.balance.coupling-loss-weight 1, say, too",
    ),
    Need(
        join_paths(BALANCE, "sparsity_factor"),
        lambda c: c.model.moe.balance.sparsity_loss_weight > 0,
        "--model.moe.balance.sparsity-loss-weight 0",
        "give --model.moe.balance.sparsity-loss-weight 1e-8, say, too",
    ),
    Need(
        join_paths(BALANCE, "experts_per_token"),
        lambda c: (
            c.model.moe.num_choices > c.model.moe.num_experts
            or c.model.moe.balance.bias_update == "threshold"
            or c.model.moe.balance.moves_sparsity
        ),
        "every expert having parameters",
        "give --model.moe.identity-experts 8, say, too",
    ),
    Need(
        join_paths(BALANCE, "bias_rate"),
        lambda c: c.model.moe.balance.bias_update in (*STEPS, "threshold"),
        "--model.moe.balance.bias-update {c.model.moe.balance.bias_update}",
        "take --model.moe.balance.bias-update sign or proportional",
    ),
    Need(
        join_paths(BALANCE, "experts_per_token"),
        lambda c: (
            c.model.moe.balance.bias_update in (*STEPS, "threshold")
            or c.model.moe.balance.moves_sparsity
        ),
        "--model.moe.balance.bias-update {c.model.moe.balance.bias_update}",
        "take --model.moe.balance.bias-update sign or proportional",
    ),
    Need(
        join_paths(BALANCE, "bias_centred"),
        lambda c: c.model.moe.balance.bias_update in STEPS,
        "--model.moe.balance.bias-update {c.model.moe.balance.bias_update}",
        "take --model.moe.balance.bias-update sign or proportional",
    ),
    Need(
        join_paths(BALANCE, "pid_proportional pid_difference pid_limit"),
        lambda c: c.model.moe.balance.bias_update == "pid",
        "--model.moe.balance.bias-update {c.model.moe.balance.bias_update}",
        "take --model.moe.balance.bias-update pid",
    ),
)
"""Layers, dense and routed, and balance."""
