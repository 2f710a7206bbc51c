"""What layers compute again in the backward pass, instead of keeping it from the forward pass."""

from typing import Any

import flax.linen as nn
import jax

from moejax.config.model import ModelConfig

LAYER_INPUT = "layer_input"
"""The name of what a layer reads (``jax.ad_checkpoint.checkpoint_name``), beside those of
``config.model.Keepable``."""
PARTS = {"attention": "_attend", "experts": "_feed_forward"}
"""By the policy that computes a part of a layer again, the part's method in ``layers.Block``."""


def recompute(block: type[nn.Module], config: ModelConfig, in_loop: bool) -> Any:
    """The class of layers, which computes again what ``config.remat`` says (Chen et al. 2016).

    ``layer`` keeps what a layer reads, and what ``config.remat_keep`` names; ``offload`` the same,
    in the host's memory; ``attention`` and ``experts`` all that the other part of the layer needs.
    """
    if config.remat == "none":
        return block
    # Outside a loop, XLA would find what is computed again and keep it instead.
    prevent_cse = not in_loop
    if config.remat in PARTS:
        return nn.remat(block, prevent_cse=prevent_cse, methods=[PARTS[config.remat]])
    policies, keep = jax.checkpoint_policies, config.remat_keep
    policy = policies.save_only_these_names(*keep) if keep else None
    if config.remat == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_INPUT, *keep],
            offload_src="device",
            offload_dst="pinned_host",
        )
    return nn.remat(block, prevent_cse=prevent_cse, policy=policy)
