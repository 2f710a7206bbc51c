"""The public names, for type checkers and editors: ``__init__.py`` imports them when used."""

from moejax.config.change import changed as changed
from moejax.config.config import Config as Config
from moejax.config.errors import UserError as UserError
from moejax.config.files import load_config_file as load_config_file
from moejax.config.model import ModelConfig as ModelConfig
from moejax.config.moe import BalanceConfig as BalanceConfig
from moejax.config.moe import MoEConfig as MoEConfig
from moejax.hf.reading import load as load_checkpoint
from moejax.inference.opening import open_model as open_model
from moejax.lab.frontier.analysis import Frontier as Frontier
from moejax.lab.study import library as study
from moejax.lab.study.definition import Study as Study
from moejax.lab.study.definition import load_study_file as load_study_file
from moejax.moe.layer import MoELayer as MoELayer
from moejax.routing.contract import ExpertChoice as ExpertChoice
from moejax.routing.contract import RouterInput as RouterInput
from moejax.routing.contract import TokenChoice as TokenChoice
from moejax.routing.routers import router as router
from moejax.runs.records import read_run as read_run
from moejax.train.metrics_writer import MetricsWriter as MetricsWriter
from moejax.train.training import train as train_model

__version__: str
__all__ = [
    "BalanceConfig",
    "Config",
    "ExpertChoice",
    "Frontier",
    "MetricsWriter",
    "MoEConfig",
    "MoELayer",
    "ModelConfig",
    "RouterInput",
    "Study",
    "TokenChoice",
    "UserError",
    "changed",
    "load_checkpoint",
    "load_config_file",
    "load_study_file",
    "open_model",
    "read_run",
    "router",
    "study",
    "train_model",
]
