"""Settings of the optimizer and its schedule.

Letters: X: numbers of a patch.
"""

from dataclasses import dataclass
from typing import Literal

from moejax.config.checks import check, check_not_negative, check_positive, check_types, flag


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw` for every parameter; or `muon` for the matrices inside the layers, with AdamW for the
    rest (embedding, patches, head, norms, routers)."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.03
    """Peak learning rate of Muon."""
    muon_iterations: int = 3
    """Newton-Schulz iterations of Muon."""
    router_learning_rate: float | None = None
    """Peak learning rate of the routers; by default AdamW's."""
    warmup_fraction: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: `cosine` decay, or `wsd`, warm-up-stable-decay: constant, then linear."""
    decay_fraction: float = 0.2
    """Share of the steps over which `wsd` decays at the end."""
    final_fraction: float = 0.0
    """Learning rate at the end, over its peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices alone."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Type in which moments (AdamW's two, Muon's momentum) are stored; their arithmetic is float32.
    `bfloat16` takes half the memory, and rounds at random, so that means stay right."""
    offload: bool = False
    """Keep moments in the host's memory between updates (TPUs and GPUs)."""
    next_token_weight: float = 0.3
    """With --model.next-tokens: the coefficient (lambda) of the mean loss of the modules that
    predict further tokens. DeepSeek-V3 has 0.3, and 0.1 in the last third of its training."""
    next_token_late_weight: float | None = None
    """The same coefficient in the last third of the steps; by default it stays."""
    label_smoothing: float = 0.0
    """In training, the share of the target probability that is spread evenly over all classes (or
    the vocabulary)."""
    head_z_loss_weight: float = 0.0
    """In training, the coefficient of the mean of log^2 Z, where Z is the sum of the exponentials
    of the head's logits: it keeps logits from drifting. PaLM has 1e-4."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; `None` for no clipping."""
    accumulate: int = 1
    """Micro-batches that one step adds up; the update is that of the whole batch."""

    def __post_init__(self) -> None:
        at = "optim"
        check_types(at, self)
        check_positive(at, self, "learning_rate", "muon_learning_rate", "router_learning_rate")
        check_positive(at, self, "clip_norm", "accumulate", "muon_iterations")
        check_not_negative(at, self, "weight_decay", "warmup_fraction", "final_fraction")
        check_not_negative(at, self, "next_token_weight", "next_token_late_weight")
        check_not_negative(at, self, "head_z_loss_weight")
        for name in ("beta1", "beta2", "label_smoothing"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{flag(at, name)} must lie in [0, 1), not {value}.")
        decay = self.decay_fraction if self.schedule == "wsd" else 0.0
        check(
            self.warmup_fraction + decay <= 1 and decay >= 0,
            f"--optim.warmup-fraction {self.warmup_fraction} and --optim.decay-fraction"
            f" {self.decay_fraction} must be shares of the run that sum to at most 1.",
        )

    def choose_transform(self, name: str) -> str:
        """Which transformation a parameter of this name takes: muon, router, matrix or rest."""
        if name.startswith(("w_router_", "w_noise_", "w_shared_gate_")):
            return "router"
        if not name.startswith(("w_", "lora_")):
            return "rest"  # norms, biases and the embedding: no weight decay
        inside = name not in ("w_head_DV", "w_patch_XD")
        return "muon" if self.optimizer == "muon" and inside else "matrix"
