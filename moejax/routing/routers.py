"""The table of routers by name, and how to add one."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from moejax.config.errors import ConfigError
from moejax.routing import assignment, baselines, expert_choice, soft, token_choice
from moejax.routing.assignment import BaseRule, SinkhornRule
from moejax.routing.baselines import HashRule, TableRule
from moejax.routing.contract import Choice, RouterInput
from moejax.routing.expert_choice import ExpertChoiceRule
from moejax.routing.token_choice import TokenChoiceRule


class Rule(Protocol):
    """Settings of a router's function: any frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


@dataclass(frozen=True, kw_only=True)
class Router:
    """A pure function, its settings, and what the layer around it must know."""

    function: Callable[..., Choice]
    """``RouterInput -> Choice``, or ``(RouterInput, rule) -> Choice`` if there is a rule."""
    paper: str = "unpublished"
    """Where it is from, with its equation."""
    rule: Rule | None = None
    """Settings of the function, whose fields a config may override."""
    causal: bool = True
    """A token's experts do not depend on later tokens (but for what the capacity drops)."""
    by_token: bool = True
    """In evaluation a token's experts depend on that token alone, so that text can be generated."""
    decoding: str = ""
    """For a router that is not causal, or not by token: what happens when text is generated."""
    top_k: int | str | None = None
    """The only K it knows (or `num_experts`), if there is only one."""
    learned: bool = True
    """Scores tokens by a matrix ``w_router_DE``."""
    linear_bias: bool = False
    """Adds a learned ``b_router_E`` to the logits."""
    selection_bias: bool = False
    """Can take the bias of the loss-free balance."""
    always_biased: bool = False
    """Has that bias even where nothing updates it: released models come with one."""
    slots: bool = False
    """Scores tokens for each slot, and so has as many slots in evaluation as in training."""
    experts_choose: bool = False
    """Fills every slot, so that the capacity factor is part of the model."""
    needs_tokens: bool = False
    """Looks at token ids."""
    counts_tokens: bool = False
    """Must be told how often each id occurs (its rule's ``token_counts``); a training counts."""
    replays: bool = False
    """Takes recorded choices (``RouterInput.replayed_GSK``) in the place of its own."""

    def choose(self, inputs: RouterInput) -> Choice:
        """Route one batch of groups."""
        return self.function(inputs) if self.rule is None else self.function(inputs, self.rule)

    @property
    def token_rule(self) -> TokenChoiceRule | None:
        """The rule, where it is one of the token-choice algebra."""
        return self.rule if isinstance(self.rule, TokenChoiceRule) else None

    @property
    def learns_noise(self) -> bool:
        """Whether a matrix ``w_noise_DE`` says how wide the noise on the logits is in training."""
        return self.token_rule is not None and self.token_rule.noise == "learned"

    @property
    def weighs_input(self) -> bool:
        """Whether weights multiply what experts get, not what they give."""
        return self.token_rule is not None and self.token_rule.weigh == "input"

    def override(self, name: str, settings: dict[str, Any]) -> "Router":
        """The router with other settings of its rule; ``ConfigError`` for one it has not."""
        settings = {key: value for key, value in settings.items() if value is not None}
        known = {f.name for f in dataclasses.fields(self.rule)} if self.rule is not None else set()
        for key in settings:
            if key not in known:
                raise ConfigError(
                    f"--model.moe.{key.replace('_', '-')} means nothing to --model.moe.router"
                    f" {name}: leave it out, or choose another router."
                )
        if self.rule is None or not settings:
            return self
        return dataclasses.replace(self, rule=dataclasses.replace(self.rule, **settings))


def _tokens_choose(paper: str, **rule: Any) -> Router:
    """A preset of the token-choice algebra."""
    own = {f.name for f in dataclasses.fields(TokenChoiceRule)}
    return Router(
        function=token_choice.choose,
        paper=paper,
        rule=TokenChoiceRule(**{k: v for k, v in rule.items() if k in own}),
        selection_bias=True,
        replays=True,
        **{k: v for k, v in rule.items() if k not in own},
    )


DEEPSEEK_V3 = {
    "score": "sigmoid",
    "group_score": "best_two",
    "renormalise": True,
    "always_biased": True,
}

ROUTERS: dict[str, Router] = {
    "dense": _tokens_choose("Shazeer et al. 2017, Eq. 1-2", top_k="num_experts"),
    "top_k": _tokens_choose("Shazeer et al. 2017, Eq. 3, 5, without noise", renormalise=True),
    "noisy_top_k": _tokens_choose(
        "Shazeer et al. 2017, Eq. 3-5", noise="learned", renormalise=True
    ),
    "switch": _tokens_choose("Fedus et al. 2021, Eq. 1-2", top_k=1),
    "gshard": _tokens_choose(
        "Lepikhin et al. 2020, Algorithm 1", renormalise=True, random_second=True, top_k=2
    ),
    "v_moe": _tokens_choose("Riquelme et al. 2021, section 2.2", noise="fixed"),
    # Released models: the fields are what their code does; sizes are the config's.
    "mixtral": _tokens_choose("Jiang et al. 2024, section 2.1", renormalise=True),
    "deepseek_moe": _tokens_choose("Dai et al. 2024, Eq. 9-11"),
    "qwen2_moe": _tokens_choose("Qwen2 (Yang et al. 2024), section 2.2.2"),
    "qwen3_moe": _tokens_choose("Qwen3 (Yang et al. 2025), section 2", renormalise=True),
    "olmoe": _tokens_choose("Muennighoff et al. 2024, Eq. 2"),
    "jamba": _tokens_choose("Lieber et al. 2024, section 3.1"),
    "granite": _tokens_choose("Granite 3.0 (IBM 2024)", renormalise=True),
    "gpt_oss": _tokens_choose(
        "gpt-oss (OpenAI 2025), section 2.2", renormalise=True, linear_bias=True
    ),
    "llama4": _tokens_choose(
        "Llama 4 (Meta 2025), its released code", score="sigmoid", weigh="input"
    ),
    "deepseek_v2": _tokens_choose("DeepSeek-V2 (2024), Eq. 20-22, section 2.2.2"),
    "deepseek_v3": _tokens_choose("DeepSeek-V3 (2024), Eq. 12-16", **DEEPSEEK_V3, weight_scale=2.5),
    "glm4_moe": _tokens_choose("GLM-4.5 (2025), section 2.1", **DEEPSEEK_V3, weight_scale=2.5),
    "minimax_m2": _tokens_choose("MiniMax-M2 (2025), its released code", **DEEPSEEK_V3),
    "flint": _tokens_choose(
        "Flint (RecursiveSI 2026), its released code", score="sigmoid", renormalise=True
    ),
    "ernie4_5": _tokens_choose(
        "ERNIE 4.5 (Baidu 2025), its released code", renormalise=True, always_biased=True
    ),
    "dynamic_top_p": _tokens_choose(
        "Huang et al. 2024 (arXiv 2403.07652), Eq. 3-5, with at most K experts", top_p=0.4
    ),
    "expert_threshold": _tokens_choose(
        "Sun et al. 2026 (arXiv 2603.11535), with at most K experts",
        score="sigmoid",
        positive=True,
        always_biased=True,
    ),
    "remoe": _tokens_choose(
        "Wang et al. 2024 (ReMoE, arXiv 2412.14711), section 3.1, with at most K experts",
        score="relu",
        positive=True,
    ),
    # Other forms.
    "expert_choice": Router(
        function=expert_choice.choose,
        paper="Zhou et al. 2022, section 3.2",
        rule=ExpertChoiceRule(),
        causal=False,
        by_token=False,
        decoding="each expert would choose among the tokens so far, which is not what it learned",
        experts_choose=True,
    ),
    "soft": Router(
        function=soft.choose,
        paper="Puigcerver et al. 2023, Eq. 1-2",
        causal=False,
        by_token=False,
        decoding="each slot would mix the tokens so far, which is not what it learned",
        slots=True,
        experts_choose=True,
    ),
    "base": Router(
        function=assignment.base,
        paper="Lewis et al. 2021, Eq. 1-3",
        rule=BaseRule(),
        causal=False,
        decoding="evaluation and generation take each token's best expert, which is causal",
        replays=True,
        top_k=1,
    ),
    "sinkhorn": Router(
        function=assignment.sinkhorn,
        paper="Clark et al. 2022, section 3.2",
        rule=SinkhornRule(),
        causal=False,
        decoding="evaluation and generation take each token's best experts, which is causal",
        replays=True,
    ),
    "hash": Router(
        function=baselines.hash_of_token,
        paper="Roller et al. 2021, section 3.2",
        learned=False,
        needs_tokens=True,
    ),
    "hash_weighted": Router(
        function=baselines.hash_and_weigh,
        paper="DeepSeek-V4 (2026), its released code, with a hash for a table",
        rule=HashRule(),
        needs_tokens=True,
    ),
    "hash_balanced": Router(
        function=baselines.look_up_and_weigh,
        paper="DeepSeek-V4 (2026), its released code, with a table of our own",
        rule=TableRule(),
        needs_tokens=True,
        counts_tokens=True,
        selection_bias=True,
    ),
    "random": Router(
        function=baselines.random,
        paper="Zuo et al. 2021, section 3",
        by_token=False,
        decoding="all tokens would go to the same experts, as it draws by their place in a group",
        learned=False,
    ),
}


def register(name: str, router: Router) -> None:
    """Add a router of your own under ``name``, for ``--model.moe.router``; a config file may do so.

    Raises ``ConfigError`` if the name is taken by another function.
    """
    there = ROUTERS.get(name)
    if there is not None and there.function.__qualname__ != router.function.__qualname__:
        raise ConfigError(f"there is a router named {name!r} already: choose another name.")
    ROUTERS[name] = router


def router(name: str, **settings: Any) -> Callable[[Callable[..., Choice]], Callable[..., Choice]]:
    """Decorate a function to ``register`` it: ``@router("mine", paper="...", causal=True)``."""

    def add(function: Callable[..., Choice]) -> Callable[..., Choice]:
        register(name, Router(function=function, **settings))
        return function

    return add
