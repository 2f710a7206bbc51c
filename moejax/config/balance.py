"""Settings of what keeps the experts evenly loaded."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from moejax.config.checks import check, check_not_negative, check_positive, check_types

OTHER_LOSSES = (
    *("z_loss", "importance_loss", "load_loss", "device_loss", "communication_loss"),
    *("orthogonality_loss", "coupling_loss", "variance_loss", "entropy_loss"),
    "sparsity_loss",
)
"""Besides the load-balancing loss; each has a setting for its weight."""


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """What keeps the experts evenly loaded. Losses are added over the routed layers."""

    loss_weight: float = 0.01
    """Coefficient (alpha) of the load-balancing loss of Switch Transformers."""
    scope: Literal["batch", "device", "sequence"] = "batch"
    """Over which tokens that loss wants an even load: the `batch` of one step, over all devices and
    accumulated micro-batches; each `device`'s part of a micro-batch; each `sequence`."""
    convention: Literal["switch", "hf"] = "switch"
    """`switch`: the loss is 1 at perfect balance in each layer. `hf`: K at balance, from pooled
    layers, so that coefficients of models in Hugging Face's format carry over."""
    z_loss_weight: float = 0.0
    """Coefficient of the router z-loss of ST-MoE."""
    importance_loss_weight: float = 0.0
    """Coefficient of Shazeer's importance loss (squared coefficient of variation of weights)."""
    load_loss_weight: float = 0.0
    """Coefficient of Shazeer's load loss; needs the noise of --model.moe.router noisy_top_k."""
    device_loss_weight: float = 0.0
    """Coefficient of DeepSeek-V2's balance over groups of experts (--model.moe.expert-groups)."""
    communication_loss_weight: float = 0.0
    """Coefficient of DeepSeek-V2's balance of what groups of experts receive."""
    orthogonality_loss_weight: float = 0.0
    """Coefficient of SimBal: how far the router's vectors of experts are from length 1 and right
    angles; the paper has 0.1."""
    coupling_loss_weight: float = 0.0
    """Coefficient of the expert-router coupling (ERC): how far experts answer to the router's
    vectors of others; the paper has 1."""
    coupling_alpha: float = 1.0
    """What part of its answer to its own vector that of an expert to others may be (ERC's alpha).
    """
    variance_loss_weight: float = 0.0
    """Coefficient of the variance of probabilities over tokens, which it lets grow."""
    entropy_loss_weight: float = 0.0
    """Coefficient of the entropy of each token's probabilities, so that few experts gather much;
    the paper of dynamic_top_p has 1e-4."""
    sparsity_loss_weight: float = 0.0
    """Coefficient of the sum of a token's scores, weighed by load: what makes ReLUs close (remoe).
    """
    sparsity_factor: float = 1.0
    """The coefficient of that loss is multiplied by this after each step in which too few scores
    are 0, and divided by it where too many are; at 1 it stays. The paper has 1.2, and begins with
    1e-8."""
    bias_update: Literal["none", "sign", "proportional", "pid", "quantile", "threshold"] = "none"
    """How the selection bias of the loss-free balance moves after each step: `none`, not at all (a
    bias that a model came with stays as it is); `sign`, by a fixed amount; `proportional`, in
    proportion to the lack; `pid`, by the lack, its sum and its change; `quantile`, at once to where
    the margins of the step's tokens say that the load would be even; `threshold`, for
    expert_threshold, towards the scores that the wanted share of the step's tokens lies above."""
    bias_rate: float = 0.001
    """How far it moves, an amount added to scores (u in Wang et al. 2024); of `threshold`, the part
    of the way."""
    pid_proportional: float = 1.0
    """Of `pid`: what the lack of this step adds to the bias beside the sum, in rates."""
    pid_difference: float = 0.5
    """Of `pid`: what its change since the step before adds, in rates."""
    pid_limit: float = 1.0
    """Of `pid`: the sum of lacks stays within plus or minus this, so that it does not wind up."""
    experts_per_token: float | None = None
    """How many of its K choices a token should spend on experts that compute, on average; the rest
    goes to experts without computation, whose bias stays (LongCat-Flash). By default every choice
    is to be as frequent as any other. Under `threshold`, and where the coefficient of the sparsity
    loss moves, how many experts a token should have on average, K by default."""
    bias_centred: bool = False
    """Keep the mean of the bias at 0."""

    @property
    def moves_sparsity(self) -> bool:
        """Whether the coefficient of the sparsity loss moves."""
        return self.sparsity_factor > 1 and self.sparsity_loss_weight > 0

    def __post_init__(self) -> None:
        at = "model.moe.balance"
        check_types(at, self)
        names = [f.name for f in dataclasses.fields(self) if f.name.endswith("_weight")]
        check_not_negative(at, self, *names)
        check_positive(at, self, "coupling_alpha", "bias_rate", "experts_per_token", "pid_limit")
        check_not_negative(at, self, "pid_proportional", "pid_difference", "sparsity_factor")
        check(
            self.sparsity_factor >= 1,
            f"--{at}.sparsity-factor must be at least 1, not {self.sparsity_factor}.",
        )
        check(
            self.convention == "switch" or self.scope == "batch",
            f"--{at}.convention hf pools the layers of a batch: it goes with --{at}.scope batch,"
            f" not {self.scope}.",
        )
