"""What a config will cost, before anything runs: arithmetic on its settings alone."""

from moejax.plan.counts import Cost, cost
from moejax.plan.products import muon_flops, step_flops

__all__ = ["Cost", "cost", "muon_flops", "step_flops"]
