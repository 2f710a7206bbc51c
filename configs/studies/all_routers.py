"""Every router that a causal language model can use, 200 steps each, one seed.

    moejax study configs/studies/all_routers.py

All have the same active size (a token meets 256 hidden numbers in each layer, shared experts
included), data, seed and optimizer; balancing is what each paper uses. Expert choice and Soft MoE
are left out: they see the future, so their loss means something else. docs/studies.md has the
table.
"""

from pathlib import Path

from moejax import BalanceConfig, Study, changed, load_config_file

ONE = {"top_k": 1, "hidden_size": 256}
SHARED = {"num_experts": 16, "top_k": 3, "hidden_size": 64, "shared_experts": 1}
LOSS_FREE = BalanceConfig(loss_weight=0.0, bias_update="sign", bias_rate=0.01)
SHAZEER = BalanceConfig(loss_weight=0.0, importance_loss_weight=0.1, load_loss_weight=0.1)
DEEPSEEK_V2 = BalanceConfig(
    loss_weight=0.003, device_loss_weight=0.05, communication_loss_weight=0.02
)
DEEPSEEK_V3 = BalanceConfig(
    scope="sequence", loss_weight=0.0001, bias_update="sign", bias_rate=0.01
)
NOTHING = BalanceConfig(loss_weight=0.0)

ROUTERS = {
    "dense": {"top_k": 8, "hidden_size": 32, "balance": NOTHING},
    "top_k": {},
    "noisy_top_k": {"balance": SHAZEER},
    "switch": ONE,
    "gshard": {},
    "v_moe": {},
    "mixtral": {},
    "jamba": {},
    "granite": {},
    "gpt_oss": {},
    "qwen3_moe": {"num_experts": 16, "top_k": 4, "hidden_size": 64},
    "olmoe": {"num_experts": 16, "top_k": 4, "hidden_size": 64},
    "qwen2_moe": {**SHARED, "shared_gate": True},
    "deepseek_moe": SHARED,
    "deepseek_v2": {**SHARED, "expert_groups": 4, "kept_expert_groups": 2, "balance": DEEPSEEK_V2},
    "deepseek_v3": {**SHARED, "expert_groups": 4, "kept_expert_groups": 2, "balance": DEEPSEEK_V3},
    "glm4_moe": {**SHARED, "balance": DEEPSEEK_V3},
    "ernie4_5": {**SHARED, "balance": LOSS_FREE},
    "minimax_m2": {"balance": LOSS_FREE},
    "llama4": {"top_k": 1, "shared_experts": 1},
    "base": {**ONE, "balance": NOTHING},
    "sinkhorn": {"balance": NOTHING},
    "hash": {**ONE, "balance": NOTHING},
    "random": {"balance": NOTHING},
}


def get_study() -> Study:
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    short = changed(short, {"run.log_every": 20, "run.eval_every": 200, "run.eval_batches": 20})
    return Study(
        title="All routers",
        question="Which router learns fastest at equal active size, and which stays balanced?",
        runs={
            name: changed(short, {"model.moe": settings | {"router": name}})
            for name, settings in ROUTERS.items()
        },
    )
