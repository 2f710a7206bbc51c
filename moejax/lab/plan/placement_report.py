"""A placement of experts in words. Letters: P: places of experts and replicas; Q: devices."""

import numpy as np

from moejax.moe.parallel.placement import Placement, balancedness


def describe_placement(plan: Placement, load_LE: np.ndarray) -> str:
    """A line for each layer, and under it the experts of each device."""
    (L, E), devices = load_LE.shape, plan.load_LQ.shape[1]
    lines = []
    plain_L = None
    if E % devices == 0:
        plain_L = balancedness(load_LE.reshape(L, devices, -1).sum(-1))
    for layer in range(L):
        before = "" if plain_L is None else f" (experts in order: {plain_L[layer]:.3f})"
        most = int(plan.replicas_LE[layer].max())
        lines.append(
            f"layer {layer}: mean load over largest {plan.balancedness_L[layer]:.3f}{before},"
            f" at most {most} replica{'s' * (most > 1)} of an expert"
        )
        for device, experts in enumerate(plan.expert_LP[layer].reshape(devices, -1)):
            names = " ".join(map(str, np.sort(experts)))
            lines.append(f"  device {device:<4} load {plan.load_LQ[layer, device]:<12g} {names}")
    return "\n".join(lines)
