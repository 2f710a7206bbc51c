"""Settings of routed layers: experts, router, balance."""

import difflib
from dataclasses import dataclass, field
from typing import Literal

from moejax.config import checks
from moejax.config.balance import BalanceConfig
from moejax.config.balance_fit import check_balance
from moejax.config.checks import check, check_not_negative, check_positive, check_types, flag
from moejax.routing.routers import ROUTERS, Router

MOST_EXPERTS = 2**20
MOST_COUNTS = 2**16
"""Tokens whose counts a config holds: the first ids, which are the most frequent ones in tokenizers
that merge pairs."""


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """The routed feed-forward layers."""

    num_experts: int = 8
    """Experts in a routed layer (E)."""
    top_k: int = 2
    """Experts that a token chooses (K), or gets on average where experts choose."""
    hidden_size: int = 128
    """Hidden width of one expert (F)."""
    expert_bias: bool = False
    """Biases on the experts' products (gpt-oss)."""
    router: str = "top_k"
    """How tokens meet experts, by name; docs/guides/routers.md has a table. `top_k`: K experts,
    weights sum to 1; `switch`: one expert, weighted by its probability; `deepseek_v3`, `soft`, ...
    """
    renormalise: bool | None = None
    """Divide a token's weights by their sum; by default as the router does."""
    weight_scale: float | None = None
    """Multiplies the weights; by default the router's."""
    top_p: float | None = None
    """A token takes its best experts, at most K, until they gather this probability; by default as
    the router does."""
    bias_on: Literal["scores", "logits"] | None = None
    """To what the selection bias is added, for the choice alone; by default to the scores."""
    token_counts: tuple[int, ...] | None = None
    """For hash_balanced: how often each token occurs, by its id from 0 on. By default a training
    counts that once in its own text, and keeps it in the config.json of the run. Tokens that do not
    occur go by their hash."""
    hash_layers: int | None = None
    """For hash_balanced: so many routed layers at the bottom go by its table, and the others choose
    by score; by default all go by it."""
    expert_groups: int | None = None
    """Groups of consecutive experts, one for each device or node (DeepSeek's n_group)."""
    kept_expert_groups: int | None = None
    """A token chooses from its best groups only, so many (DeepSeek's topk_group)."""
    max_experts_per_token: int | None = None
    """For expert_choice: no token gets more experts than this."""
    identity_experts: int = 0
    """Experts that give the token back, to choose from besides the others."""
    null_experts: int = 0
    """Experts that give 0, to choose from besides the others."""
    router_jitter: float = 0.0
    """In training, multiply the router's input by uniform noise in [1 - jitter, 1 + jitter]."""
    router_dropout: float = 0.0
    """In training, zero this share of the router's input."""
    expert_dropout: float = 0.0
    """In training, zero this share of the experts' hidden numbers."""
    every: int = 1
    """Every n-th layer is routed; 0 makes every layer dense (the dense twin of equal active size).
    """
    first_dense: int = 0
    """This many layers at the bottom stay dense."""
    shared_experts: int = 0
    """Experts that every token passes through besides the chosen ones, as one dense layer."""
    shared_hidden_size: int | None = None
    """Hidden width of the shared experts together; by default shared_experts * hidden_size."""
    shared_gate: bool = False
    """Multiply the shared experts' output by a learned sigmoid gate (Qwen2-MoE)."""
    group_size: int = 128
    """Tokens that compete for an expert's slots together (S): divides the sequence length, or is a
    multiple of it."""
    capacity_factor: float | None = 1.25
    """Slots of an expert in a group, over its fair share S*K/E, in training; None: nothing is
    dropped."""
    eval_capacity_factor: float | None = 2.0
    """The same in the evaluations of a training; where experts choose, the training one holds. Text
    is generated, and `moejax eval` evaluates, without drops."""
    eval_candidates: int | None = None
    """In evaluations with --model.moe.eval-capacity-factor: a token competes for slots of so many
    of its best experts, by score, and takes the K best that have room (capacity-aware inference);
    by default for its K, by --model.moe.seating."""
    seating: Literal["position", "priority"] = "position"
    """Who gets a slot: all first choices in the order of the tokens, then the second ones; or the
    tokens of largest weight first (batch-prioritised routing, not causal)."""
    dispatch: Literal["auto", "einsum", "gather", "grouped"] = "auto"
    """How tokens travel to experts and back; all forms give the same. `einsum`: the one-hot tensors
    of GShard and Switch; `gather`: the same slots by index; `grouped`: rows sorted by expert, no
    slots. `auto` takes what suits the devices and the shape: docs/guides/dispatch.md has the rule.
    """
    balance: BalanceConfig = field(default_factory=BalanceConfig)

    def __post_init__(self) -> None:
        at = "model.moe"
        checks.make_tuples(self, "token_counts")
        check_types(at, self)
        checks.check_sizes(at, self, "num_experts", "top_k", "hidden_size", "group_size")
        checks.check_sizes(at, self, "shared_hidden_size")
        check_positive(at, self, "capacity_factor", "eval_capacity_factor", "weight_scale")
        check_positive(at, self, "expert_groups", "kept_expert_groups", "max_experts_per_token")
        check_positive(at, self, "hash_layers")
        check_counts(at, self.token_counts)
        check_not_negative(at, self, "every", "first_dense", "shared_experts")
        check_not_negative(at, self, "identity_experts", "null_experts")
        experts = ("num_experts", "identity_experts", "null_experts", "shared_experts")
        checks.check_at_most(MOST_EXPERTS, at, self, *experts)
        wanted = self.top_p
        check(
            wanted is None or 0 < wanted <= 1,
            f"{flag(at, 'top_p')} must lie in (0, 1], not {wanted}.",
        )
        for name in ("router_jitter", "router_dropout", "expert_dropout"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{flag(at, name)} must lie in [0, 1), not {value}.")
        check_router(self)
        check_balance(self)

    @property
    def num_choices(self) -> int:
        """All that a router chooses among: experts and zero-computation experts."""
        return self.num_experts + self.identity_experts + self.null_experts

    @property
    def mean_experts(self) -> float:
        """Experts that compute which a token meets, on average where balancing sees to that."""
        balance, others = self.balance, self.num_choices > self.num_experts
        held = balance.bias_update == "threshold" or balance.moves_sparsity
        held |= others and balance.bias_update != "none"
        return balance.experts_per_token or self.top_k if held else self.top_k

    @property
    def shared_width(self) -> int:
        """Hidden width of the shared experts together; 0 where there are none."""
        if self.shared_experts == 0:
            return 0
        return self.shared_hidden_size or self.shared_experts * self.hidden_size

    @property
    def has_constant_weights(self) -> bool:
        """Whether every chosen expert has the same weight, from which a router learns nothing."""
        renormalise = getattr(self.built_router.rule, "renormalise", False)
        return renormalise and self.top_k == 1 < self.num_choices and self.every > 0

    @property
    def has_selection_bias(self) -> bool:
        """Whether a bias is a part of the model's state."""
        return self.balance.bias_update != "none" or ROUTERS[self.router].always_biased

    @property
    def built_router(self) -> Router:
        """The router with this config's settings."""
        settings = {name: getattr(self, name) for name in ROUTER_SETTINGS}
        return ROUTERS[self.router].override(self.router, settings)


# Settings of MoEConfig that override a field of the router's rule.
ROUTER_SETTINGS = (
    "renormalise",
    "weight_scale",
    "top_p",
    "eval_candidates",
    "bias_on",
    "token_counts",
    "hash_layers",
    "expert_groups",
    "kept_expert_groups",
    "max_experts_per_token",
)


def check_counts(at: str, counts: tuple[int, ...] | None) -> None:
    """Counts of tokens must be some, whole, and not more than a config can hold."""
    given = counts or ()
    right = all(type(n) is int and 0 <= n < 2**53 for n in given) and len(given) <= MOST_COUNTS
    check(
        right and (counts is None or sum(given) > 0),
        f"{flag(at, 'token_counts')} must be at most {MOST_COUNTS:,} whole numbers, not all 0.",
    )


def check_router(moe: MoEConfig) -> None:
    """The router must exist, and K, the groups and the zero-computation experts must suit it."""
    near = difflib.get_close_matches(moe.router, ROUTERS, n=1, cutoff=0.5)
    check(
        moe.router in ROUTERS,
        f"--model.moe.router {moe.router} is not known."
        + (f" Did you mean {near[0]}?" if near else "")
        + f" There are: {', '.join(sorted(ROUTERS))}.",
    )
    router, K, E = moe.built_router, moe.top_k, moe.num_choices
    check(
        K <= E,
        f"--model.moe.top-k {K} asks for more experts than there are: it can be at most"
        f" --model.moe.num-experts, {moe.num_experts}"
        + (f", and {E - moe.num_experts} without computation." if moe.num_experts < E else "."),
    )
    wanted = E if router.top_k == "num_experts" else router.top_k
    check(
        wanted in (None, K),
        f"--model.moe.router {moe.router} gives a token {wanted} expert{'s' * (wanted != 1)}, but"
        f" --model.moe.top-k is {K}: set it to {wanted}, or choose another router, such as top_k.",
    )
    check(
        moe.num_experts == E or not router.experts_choose,
        f"--model.moe.router {moe.router} has no use for experts without computation:"
        f" --model.moe.identity-experts and --model.moe.null-experts must be 0.",
    )
    check(
        moe.seating == "position" or not router.experts_choose,
        f"--model.moe.seating priority orders the tokens' choices, but with --model.moe.router"
        f" {moe.router} tokens do not choose: leave it at position.",
    )
    check(
        moe.capacity_factor is not None or not router.experts_choose,
        f"--model.moe.router {moe.router} fills all slots of every expert, so it needs a number of"
        f" them: --model.moe.capacity-factor 1, say, not None.",
    )
    candidates = moe.eval_candidates
    check(
        candidates is None or K <= candidates <= E == moe.num_experts,
        f"--model.moe.eval-candidates {candidates} must be at least --model.moe.top-k, {K}, and at"
        f" most --model.moe.num-experts, {moe.num_experts}; and all experts must compute.",
    )
    cap, factor = moe.max_experts_per_token, moe.capacity_factor
    check(
        cap is None or factor is None or factor * K <= cap,
        f"--model.moe.max-experts-per-token {cap} is less than what the experts' slots hold:"
        f" --model.moe.capacity-factor {factor} times --model.moe.top-k {K} tokens for each token.",
    )
    check_dispatch(moe, router)
    check_expert_groups(moe)


def check_dispatch(moe: MoEConfig, router: Router) -> None:
    """Each form of dispatch must be able to carry the router's choice."""
    check(
        moe.dispatch in ("auto", "einsum") or not router.slots,
        f"--model.moe.dispatch {moe.dispatch}: with --model.moe.router {moe.router} every slot"
        f" holds a part of every token: leave it at einsum.",
    )
    check(
        moe.dispatch != "grouped" or not router.experts_choose,
        f"--model.moe.dispatch grouped follows the tokens' choices, but with --model.moe.router"
        f" {moe.router} experts choose: take gather or einsum.",
    )
    check(
        moe.dispatch != "grouped" or moe.expert_dropout == 0,
        "--model.moe.expert-dropout has no place in --model.moe.dispatch grouped: take gather.",
    )


def check_expert_groups(moe: MoEConfig) -> None:
    """Groups must divide the experts, and those kept must hold K of them."""
    groups, kept = moe.expert_groups, moe.kept_expert_groups
    if groups is None:
        check(kept is None, "--model.moe.kept-expert-groups needs --model.moe.expert-groups.")
        return
    check(
        moe.num_choices % groups == 0,
        f"--model.moe.expert-groups {groups} does not divide the {moe.num_choices} experts"
        f" (--model.moe.num-experts, with those without computation).",
    )
    check(
        kept is None or kept <= groups,
        f"--model.moe.kept-expert-groups {kept} is more than --model.moe.expert-groups {groups}.",
    )
    room = (kept or groups) * moe.num_choices // groups
    check(
        moe.top_k <= room,
        f"--model.moe.kept-expert-groups {kept} leaves a token {room} expert{'s' * (room != 1)} to"
        f" choose from, fewer than --model.moe.top-k {moe.top_k}.",
    )
