"""What a config will cost, before anything runs: arithmetic on its settings alone."""

from moejax.plan.counts import Cost, active_parameters, cost, forward_flops, parameters
from moejax.plan.products import muon_flops, step_flops

__all__ = [
    "Cost",
    "active_parameters",
    "cost",
    "forward_flops",
    "muon_flops",
    "parameters",
    "step_flops",
]
