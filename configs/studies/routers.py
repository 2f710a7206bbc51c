"""Routers of five kinds at equal active size, and the dense twin; `catalogue.py` has them all.

    moejax study configs/studies/routers.py

A token meets 256 hidden numbers in each layer, shared experts included; balancing is what each
paper uses. `switch`: one wide expert. `top_k`: two. `olmoe`: four of 16. `deepseek_v3`: three and a
shared one, by sigmoid scores with a selection bias, in groups. `hash`: nothing learned.

Two CPU cores, shared (2026-11-22, Python 3.11.7, jax 0.10.2): bits per byte against dense (2.214),
with the same seed, are -0.030..+0.037 for switch, -0.054..-0.020 for top_k, -0.107..-0.064 for
olmoe, +0.122..+0.134 for deepseek_v3 and -0.122..-0.055 for hash.
"""

from pathlib import Path

from moejax import Study, changed, load_config_file

KINDS = {
    "switch": {"top_k": 1, "hidden_size": 256},
    "top_k": {},
    "olmoe": {"num_experts": 16, "top_k": 4, "hidden_size": 64},
    "deepseek_v3": {
        **{"num_experts": 16, "top_k": 3, "hidden_size": 64, "shared_experts": 1},
        **{"expert_groups": 4, "kept_expert_groups": 2},
        "balance": {
            **{"scope": "sequence", "loss_weight": 0.0001},
            **{"bias_update": "sign", "bias_rate": 0.01},
        },
    },
    "hash": {"top_k": 1, "hidden_size": 256, "balance": {"loss_weight": 0.0}},
}


def get_study() -> Study:
    short = load_config_file(Path(__file__).parents[1] / "quickstart_short.py")
    routed = {
        name: changed(short, {"model.moe": settings | {"router": name}})
        for name, settings in KINDS.items()
    }
    return Study(
        title="Routers",
        question="Which kind of router learns fastest at equal active size, and stays balanced?",
        runs={"dense-twin": changed(short, {"model.moe.every": 0})} | routed,
        seeds=(0, 1, 2),
        baseline="dense-twin",
    )
