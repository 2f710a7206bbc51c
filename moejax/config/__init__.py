"""The one tree of settings: frozen dataclasses, their checks, and how a run's settings are loaded.

A config file is Python with a function ``get_config() -> Config``; every field can be overridden on
the command line (``--model.moe.num-experts 16``). A bad value raises ``ConfigError`` here, before
anything is compiled or written.
"""

from moejax.config.attention import AttentionConfig, RopeConfig
from moejax.config.balance import BalanceConfig
from moejax.config.change import changed
from moejax.config.checks import check, check_not_negative, check_positive, check_types, flag
from moejax.config.config import Config
from moejax.config.data import DataConfig
from moejax.config.delta import DeltaConfig
from moejax.config.distributed import DistributedConfig
from moejax.config.errors import ConfigError
from moejax.config.files import (
    call_file,
    differences,
    flatten,
    from_dict,
    load_config_file,
    read_config_json,
    to_dict,
)
from moejax.config.images import ImageConfig, ImageDataConfig
from moejax.config.lora import LoraConfig
from moejax.config.mesh import MeshConfig
from moejax.config.mixture import SourceConfig
from moejax.config.model import ModelConfig
from moejax.config.moe import MoEConfig
from moejax.config.optim import OptimConfig
from moejax.config.run import RunConfig

__all__ = [
    "AttentionConfig",
    "BalanceConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DeltaConfig",
    "DistributedConfig",
    "ImageConfig",
    "ImageDataConfig",
    "LoraConfig",
    "MeshConfig",
    "MoEConfig",
    "ModelConfig",
    "OptimConfig",
    "RopeConfig",
    "RunConfig",
    "SourceConfig",
    "call_file",
    "changed",
    "check",
    "check_not_negative",
    "check_positive",
    "check_types",
    "differences",
    "flag",
    "flatten",
    "from_dict",
    "load_config_file",
    "read_config_json",
    "to_dict",
]
