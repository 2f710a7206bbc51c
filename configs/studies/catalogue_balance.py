"""The catalogue of ways to keep experts evenly loaded, at equal active FLOPs, each tuned. Routers
are in `catalogue.py`, whose model and data these are.

    moejax study configs/studies/catalogue_balance.py --at-once 2 --threads 1

All arms balance `top_k`, two of eight experts, but for `importance-and-load`, which needs the noise
of `noisy_top_k`. Each has five settings, tuned on seed 0 and judged on seeds 1 to 5: its own
strength, at the learning rates that are the best for `top_k`; where there is no strength, the
learning rates. The baseline is the loss of Switch Transformers, tuned like the others. That is 21
arms and 210 trainings, some of which the catalogue of routers has already; the others took an hour
and five minutes, two at a time (2026-11-29, as in `catalogue.py`). `docs/catalogue.md` has the
results. Ranges of which the last value was the best were moved by one step: so arms of one kind
differ in them.
"""

from typing import Any

import catalogue
from catalogue import DEEPSEEK_V3, NOTHING, ON_AVERAGE, ROOM

from moejax import Config, Study, changed

BEST = 4
"""The setting that `top_k` takes in the catalogue of routers."""
LOSS, RATE = ("loss_weight",), ("bias_rate",)
ALPHAS, RATES = (0.003, 0.01, 0.03, 0.1, 0.3), (0.001, 0.003, 0.01, 0.03, 0.1)
LARGER = (0.01, 0.03, 0.1, 0.3, 1.0)
# With 0, an arm is what it is compared with: where nothing helps, that is its best.
TENS, TENTHS = (0.0, 0.01, 0.1, 1.0, 10.0), (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
LOWER = (0.0003, 0.001, 0.003, 0.01, 0.03)

SIGN = NOTHING | {"bias_update": "sign"}
WAYS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[float, ...]]] = {
    "loss": ({}, LOSS, LARGER),
    "loss-of-sequences": ({"scope": "sequence"}, LOSS, ALPHAS),
    "z-loss-beside-loss": ({}, ("z_loss_weight",), TENTHS),
    "importance": (NOTHING, ("importance_loss_weight",), LARGER),
    "orthogonality": (NOTHING, ("orthogonality_loss_weight",), TENS),
    "coupling": (NOTHING, ("coupling_loss_weight",), TENS),
    "variance-beside-loss": ({}, ("variance_loss_weight",), TENS),
    "entropy-beside-loss": ({}, ("entropy_loss_weight",), TENTHS),
    "bias-sign": (SIGN, RATE, RATES),
    "bias-proportional": (NOTHING | {"bias_update": "proportional"}, RATE, RATES),
    "bias-pid": (NOTHING | {"bias_update": "pid"}, RATE, RATES),
    "bias-sign-centred": (SIGN | {"bias_centred": True}, RATE, RATES),
    "bias-sign-beside-loss": (DEEPSEEK_V3, RATE, RATES),
}
"""Settings of balancing alone, and the strength that is tuned."""

BOTH = ("importance_loss_weight", "load_loss_weight")
NULLS = {"top_k": 3, "null_experts": 4, "balance": NOTHING | ON_AVERAGE}
OTHERS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[float, ...]]] = {
    "importance-and-load": (
        {"model.moe": {"router": "noisy_top_k", "balance": NOTHING}},
        BOTH,
        LARGER,
    ),
    "loss-of-micro-batches": (
        {"optim.accumulate": 4, "model.moe.balance.scope": "device"},
        LOSS,
        LARGER,
    ),
    "loss-dropless": ({"model.moe": ROOM}, LOSS, LARGER),
    "bias-sign-on-logits": (
        {"model.moe": {"bias_on": "logits", "balance": SIGN}},
        RATE,
        LARGER,
    ),
    "bias-to-a-target-share": ({"model.moe": NULLS}, RATE, LOWER),
}
"""The same, with other settings than those of balancing."""

WITHOUT_STRENGTH: dict[str, dict[str, Any]] = {
    "nothing": {"balance": NOTHING},
    "nothing-dropless": ROOM | {"balance": NOTHING},
    "bias-quantile": {"balance": NOTHING | {"bias_update": "quantile"}},
}


def tune_strength(names: tuple[str, ...], values: tuple[float, ...]) -> dict[Any, Any]:
    """The strength of a way to balance; several settings are moved together."""
    fields = tuple(f"model.moe.balance.{name}" for name in names)
    return {fields: tuple((value,) * len(fields) for value in values)}


def get_study() -> Study:
    routers = catalogue.get_study()
    base = routers.config_of("top_k", routers.settings_of("top_k")[BEST - 1])
    ways = {name: ({"model.moe.balance": own}, *rest) for name, (own, *rest) in WAYS.items()}
    ways |= OTHERS
    arms: dict[str, Config] = {name: changed(base, own) for name, (own, _, _) in ways.items()}
    arms |= {name: changed(base, {"model.moe": own}) for name, own in WITHOUT_STRENGTH.items()}
    return Study(
        title="The catalogue of ways to balance",
        question="Which way to keep experts evenly loaded lets the same router learn most from the"
        " same text, when each is tuned alike?",
        runs=arms,
        seeds=routers.seeds,
        baseline="loss",
        tune=routers.tune,
        tune_own={name: tune_strength(names, values) for name, (_, names, values) in ways.items()}
        | {"nothing": catalogue.tune_rates(*catalogue.USUAL, first=-1)},  # best at the highest
    )
