"""A model's settings as it is run when training is over."""

from dataclasses import replace

from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.mesh import MeshConfig
from moejax.config.mesh_fit import check_mesh
from moejax.config.model import ModelConfig
from moejax.runtime import device_fit


def inference_config(config: ModelConfig) -> ModelConfig:
    """The same model with nothing dropped and nothing recomputed, in the forms that suit the
    devices that it is run on. Groups then mean nothing, but to routers that look at several tokens.
    """
    moe = replace(config.moe, eval_capacity_factor=None, dispatch="auto", expert_dropout=0.0)
    if config.moe.built_router.by_token:
        moe = replace(moe, group_size=1)
    attention = replace(config.attention, form="auto")  # it may have had a kernel of others
    return replace(config, remat="none", remat_keep=(), moe=moe, attention=attention)


def inference_layout(layout: MeshConfig) -> MeshConfig:
    """The same layout with tokens that travel in one part, as they are few, and none dropped; and
    with whole sequences, of which every device may have some.
    """
    return replace(layout, chunks=1, receive_factor=None, context=1)


def check_can_generate(config: ModelConfig) -> None:
    """Raise ``ConfigError`` for a model whose router needs more than the token at hand."""
    router = config.moe.built_router
    check(
        router.by_token or not any(config.routed_layers),
        f"no text can be generated with --model.moe.router {config.moe.router}: {router.decoding}.",
    )


def check_layout(config: ModelConfig, layout: MeshConfig, mesh: Mesh) -> None:
    """Raise ``ConfigError`` if a model cannot lie on this mesh when it is run."""
    check_mesh(inference_config(config), layout)
    device_fit.check_fsdp(config, layout, mesh)
