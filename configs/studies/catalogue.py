"""The catalogue of routers: all that a causal language model can use, at equal active FLOPs, each
tuned. Ways to balance one of them are in `catalogue_balance.py`.

    moejax study configs/studies/catalogue.py --at-once 2 --threads 1

Every arm has five settings of the learning rates, moved together over a factor of 16, tuned on
seed 0 and judged on seeds 1 to 5: three would decide next to nothing among so many comparisons.
That is 41 arms and 410 trainings; `docs/catalogue.md` has the results. The model is a smaller
quickstart, and is trained for 200 steps: two trainings at a time took 40 seconds each (on two slow
cores, 2026-11-29, Python 3.11.7, jax 0.10.2), so all of them took two and a half hours. They can be
had in pieces: the same command goes on.

All arms see the same tokens, and a token meets 2 x WIDTH hidden numbers in each layer, shared
experts included: on average where a router varies their number, and at most so many with
`dynamic_top_p`. Names of routers that are the same arithmetic here are one arm: `mixtral` and
`granite` are `top_k`, and `jamba` differs from `olmoe` in its number of experts alone. Expert
choice and Soft MoE are left out: they see the future, so their loss means something else.
"""

from pathlib import Path
from typing import Any

from moejax import Config, Study, changed, load_config_file

WIDTH = 96
"""Of the model, and of an expert where a token has two."""

# Of the same active size as two of eight experts.
ONE = {"top_k": 1, "hidden_size": 2 * WIDTH}
FINE = {"num_experts": 16, "top_k": 4, "hidden_size": WIDTH // 2}
SHARED = {"num_experts": 16, "top_k": 3, "hidden_size": WIDTH // 2, "shared_experts": 1}
GROUPED = SHARED | {"expert_groups": 4, "kept_expert_groups": 2}
ROOM = {"capacity_factor": None, "eval_capacity_factor": None, "dispatch": "grouped"}
NOTHING: dict[str, Any] = {"loss_weight": 0.0}
LOSS_FREE = NOTHING | {"bias_update": "sign", "bias_rate": 0.01}
SHAZEER = NOTHING | {"importance_loss_weight": 0.1, "load_loss_weight": 0.1}
DEEPSEEK_V2 = {
    "loss_weight": 0.003,
    "device_loss_weight": 0.05,
    "communication_loss_weight": 0.02,
}
DEEPSEEK_V3 = {
    "scope": "sequence",
    "loss_weight": 0.0001,
    "bias_update": "sign",
    "bias_rate": 0.01,
}
ON_AVERAGE = {"bias_update": "sign", "bias_rate": 0.01, "experts_per_token": 2.0}

ROUTERS: dict[str, dict[str, Any]] = {
    "top_k": {},
    "dense": {"top_k": 8, "hidden_size": WIDTH // 4, "balance": NOTHING},
    "noisy_top_k": {"balance": SHAZEER},
    "switch": ONE,
    "gshard": {},
    "v_moe": {},
    "jamba": {},
    "gpt_oss": {},
    "qwen3_moe": FINE,
    "olmoe": FINE,
    "deepseek_moe": SHARED,
    "qwen2_moe": SHARED | {"shared_gate": True},
    "deepseek_v2": GROUPED | {"balance": DEEPSEEK_V2},
    "deepseek_v3": GROUPED | {"balance": DEEPSEEK_V3},
    "glm4_moe": SHARED | {"balance": DEEPSEEK_V3},
    "ernie4_5": SHARED | {"balance": LOSS_FREE},
    "minimax_m2": {"balance": LOSS_FREE},
    "flint": SHARED,
    "llama4": {"top_k": 1, "hidden_size": WIDTH, "shared_experts": 1},
    "dynamic_top_p": FINE | {"balance": {"loss_weight": 0.01, "entropy_loss_weight": 1e-4}},
    "expert_threshold": {
        "top_k": 4,
        "balance": ON_AVERAGE | {"loss_weight": 0.0, "bias_update": "threshold", "bias_rate": 0.05},
    },
    "remoe": {
        "top_k": 4,
        "balance": {
            "loss_weight": 0.0,
            "sparsity_loss_weight": 1e-8,
            "sparsity_factor": 1.2,
            "experts_per_token": 2.0,
        },
    },
    "base": ONE | {"balance": NOTHING},
    "sinkhorn": {"balance": NOTHING},
    "hash": ONE | {"balance": NOTHING},
    "hash_weighted": {"balance": NOTHING},
    "hash_balanced": {"balance": NOTHING},
    "random": {"balance": NOTHING},
}
"""Arms that have the name of their router."""

VARIANTS: dict[str, dict[str, Any]] = {
    "hash_balanced-first-layer": {
        "router": "hash_balanced",
        "hash_layers": 1,
        "balance": LOSS_FREE,
    },
    "deepseek_v3-sum-1": GROUPED
    | {"router": "deepseek_v3", "weight_scale": 1.0, "balance": DEEPSEEK_V3},
    "top_k-sum-2": {"weight_scale": 2.0},
    "top_k-sum-3": {"weight_scale": 3.0},
    "top_k-null": {"top_k": 3, "null_experts": 4, "balance": ON_AVERAGE},
    "top_k-identity": {"top_k": 3, "identity_experts": 4, "balance": ON_AVERAGE},
    "top_k-dropless": ROOM,
    "switch-dropless": ONE | ROOM | {"router": "switch"},
    "base-dropless": ONE | ROOM | {"router": "base", "balance": NOTHING},
    "sinkhorn-dropless": ROOM | {"router": "sinkhorn", "balance": NOTHING},
    "hash-dropless": ONE | ROOM | {"router": "hash", "balance": NOTHING},
}
"""Further routers: settings of one, or one that no choice of which is dropped."""

USUAL = {"learning_rate": 0.02, "muon_learning_rate": 0.03, "router_learning_rate": 0.003}


def tune_rates(*names: str, first: int = -2) -> dict[Any, tuple[tuple[float, ...], ...]]:
    """Five settings of these learning rates, moved together: each twice the one before, beginning
    with 2 to the power of ``first`` times the usual ones.
    """
    steps = [tuple(USUAL[name] * 2.0**step for name in names) for step in range(first, first + 5)]
    return {tuple(f"optim.{name}" for name in names): tuple(steps)}


HIGHER = (
    "remoe",
    "sinkhorn",
    "hash_balanced",
    "hash_balanced-first-layer",
    "top_k-sum-3",
    "top_k-dropless",
    "sinkhorn-dropless",
    "hash-dropless",
)
"""Arms that are best at four times the usual rates, the last setting of the others. Theirs begin
with a half and not with a quarter, so that the best one lies inside.
"""


def get_base() -> Config:
    """A smaller quickstart: two layers, and 200 steps."""
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    run = {"log_every": 20, "eval_every": 50, "checkpoint_every": 200}
    model = {"num_layers": 2, "width": WIDTH, "moe.hidden_size": WIDTH}
    return changed(short, {"run": run, "model": model})


def get_study() -> Study:
    base = get_base()
    arms = {name: changed(base, {"model.moe": {"router": name} | s}) for name, s in ROUTERS.items()}
    arms |= {name: changed(base, {"model.moe": settings}) for name, settings in VARIANTS.items()}
    # The router stays what it was at the start: so small a rate moves nothing.
    arms["top_k-frozen"] = changed(base, {"optim.router_learning_rate": 1e-9})
    return Study(
        title="The catalogue of routers",
        question="Which router learns most from the same text at equal active size, when each is"
        " tuned alike?",
        runs={"dense-twin": changed(base, {"model.moe.every": 0})} | arms,
        seeds=(1, 2, 3, 4, 5),
        baseline="top_k",
        tune=tune_rates(*USUAL),
        tune_own={"top_k-frozen": tune_rates("learning_rate", "muon_learning_rate")}
        | {name: tune_rates(*USUAL, first=-1) for name in HIGHER},
    )
