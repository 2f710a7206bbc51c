"""From the command line to a Config, and from an error to a message and an exit code."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from moejax.config.config import Config
from moejax.config.errors import ConfigError, UserError
from moejax.config.files import load_config_file


def parse(argv: list[str], program: str) -> tuple[Config, str]:
    """The config of ``--config FILE`` with the overrides that follow, and its name.

    Help and misspelt or mistyped flags end the process (exit codes 0 and 2) with a message.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    known, rest = first.parse_known_args(argv)
    asks_help = any(word in ("-h", "--help") for word in rest)
    if known.config is None and not asks_help:
        there = sorted(str(path) for path in Path("configs").glob("*.py"))
        raise ConfigError(
            "--config is missing: the Python file of a run, such as "
            + (", ".join(there) or "configs/quickstart.py")
            + "."
        )
    config = load_config_file(known.config) if known.config else Config()
    config = overridden(config, rest, f"{program} --config {known.config or 'FILE'}")
    # One config.json is like another: its directory has the name.
    return config, known.config.parent.name if known.config.suffix == ".json" else known.config.stem


def overridden(config: Config, flags: list[str], program: str) -> Config:
    """The config with what ``flags`` say; help and wrong flags end the process as in ``parse``."""
    import tyro  # late: a message about a config file should not wait for it

    return tyro.cli(
        Config,
        args=flags,
        default=config,
        prog=program,
        description="Every setting below can be overridden; the defaults are those of the file.",
        config=(tyro.conf.FlagConversionOff,),  # --mesh.fsdp True, as for truths that may be None
    )


def run_main(main: Callable[[], None]) -> None:
    """Run ``main``; a ``UserError`` becomes a message on standard error and its exit code."""
    sys.unraisablehook = _without_orbax_callbacks
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        main()
    except BrokenPipeError:  # whoever read what is printed has seen enough
        os._exit(1)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(error.exit_code)  # without what a broken save's threads would print at the end


def _without_orbax_callbacks(raised: "sys.UnraisableHookArgs") -> None:
    """When a save fails, TensorStore's threads go on calling an event loop that Orbax has closed;
    the failure itself has its own message.
    """
    if str(raised.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(raised)
