"""The lines of metrics once more, for Weights & Biases."""

import secrets
import warnings
from typing import Any

import numpy as np

from moejax.config.config import Config
from moejax.config.errors import ConfigError
from moejax.config.files import to_dict
from moejax.config.json_files import read_json
from moejax.runs.run_directory import RunDirectory
from moejax.runtime.atomic_files import write_json
from moejax.train.tensorboard import loads, numbers

INIT_SECONDS = 30
"""How long a start waits for the server."""
FINISH_SECONDS = 60
"""How long the end waits for what has not been sent yet; `wandb sync` sends it later."""


class WeightsAndBiases:
    """Writes to a run of the project ``config.run.wandb``; its id is kept in the directory of
    ``run``, so that a resumed run goes on in it. Needs the package `wandb`, whose environment
    variables hold: `WANDB_MODE=offline`, `WANDB_ENTITY`, `WANDB_BASE_URL`.

    A server that does not answer stops nothing: the lines go to `wandb/` in the directory, as if
    offline. Raises ``ConfigError`` if nobody is logged in.
    """

    def __init__(self, config: Config, run: RunDirectory) -> None:
        import wandb  # an extra

        try:
            self._run = _start(config, run)
        except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            raise ConfigError(
                f"--run.wandb {config.run.wandb}: {error} If nobody is logged in: `wandb login`, or"
                f" WANDB_MODE=offline and `wandb sync` later."
            ) from error
        except Exception as error:  # of a network, in the words of several libraries
            wandb.teardown()  # the process that tried to reach the server still has this run
            warnings.warn(
                f"--run.wandb {config.run.wandb}: {error}. The run goes on, and its metrics are"
                f" kept in {run.path / 'wandb'}; `wandb sync` sends them later.",
                stacklevel=3,
            )
            self._run = _start(config, run, mode="offline")
        # by its own step: a resumed run writes some steps again, with the same figures
        self._run.define_metric("*", step_metric="step")

    def write(self, line: dict[str, Any], load_LE: np.ndarray | None = None) -> None:
        """The numbers of a line of metrics, its alarms, and the load of all experts over the
        mean.
        """
        import wandb

        record: dict[str, Any] = {"step": line["step"], **numbers(line)}
        if load_LE is not None:
            for name, ratio_E in loads(line, load_LE).items():
                record[name] = wandb.Histogram(np_histogram=np.histogram(ratio_E, bins=32))
        self._run.log(record)

    def close(self) -> None:
        """Send what has not been sent yet."""
        self._run.finish()


def _start(config: Config, run: RunDirectory, mode: Any = None) -> Any:
    import wandb

    return wandb.init(
        project=config.run.wandb,
        id=keep_id(run),
        resume="allow",
        name=run.path.name,
        dir=run.path,
        config=to_dict(config) | {"report": str(run.report.absolute())},
        mode=mode,
        settings=wandb.Settings(init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS),
    )


def keep_id(run: RunDirectory) -> str:
    """The id of this run at Weights & Biases; a new one at the first start."""
    file = run.path / "wandb.json"
    try:
        return str(read_json(file)["id"])
    except (OSError, ValueError, KeyError, TypeError):
        made = secrets.token_hex(4)
        write_json(file, {"id": made})
        return made
