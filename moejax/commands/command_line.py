"""From the words of a command line to settings, and from an error to a message and an exit code."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from moejax.commands.short_flags import lengthen
from moejax.config.config import Config
from moejax.config.data import DataConfig
from moejax.config.errors import ConfigError, UserError
from moejax.config.files import load_config_file
from moejax.config.idle import check_command, check_flags, warn_of_file
from moejax.config.own_code import describe_error, find_lines
from moejax.config.paths import expand_home
from moejax.runtime.start_jax import explain_no_devices
from moejax.runtime.writing import explain

T = TypeVar("T")

SETTINGS_FOLLOW = (
    "Every setting of a config can follow as a flag, such as --mesh.expert 8:"
    " `python train.py --config FILE --help` lists them."
)


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """Which config a command is about."""

    config: Path | None = None
    """The Python file of a run, or the config.json of one."""


def parse_settings(kind: type[T], words: list[str], program: str, summary: str) -> T:
    """The settings of a subcommand. Help, and flags that are misspelt or mistyped, end the process
    (exit codes 0 and 2) with a message.
    """
    import tyro  # late: a message about a config file should not wait for it

    settings = tyro.cli(
        kind,
        args=words,
        prog=program,
        description=_first_capital(summary),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return check_effects(expand_paths(settings))


def parse_known(kind: type[T], words: list[str], program: str, summary: str) -> tuple[T, list[str]]:
    """The settings of a subcommand, and the words that are left for ``override``."""
    import tyro

    settings, left = tyro.cli(
        kind,
        args=words,
        prog=program,
        description=f"{_first_capital(summary)} {SETTINGS_FOLLOW}",
        config=(tyro.conf.FlagCreatePairsOff,),
        return_unknown_args=True,
    )
    return check_effects(expand_paths(settings)), left


def check_effects(settings: T) -> T:
    """The settings of a subcommand. Raises ``ConfigError`` for those that do nothing, as its
    ``NEEDS`` say.
    """
    check_command(settings, getattr(settings, "NEEDS", ()))
    return settings


def expand_paths(settings: T) -> T:
    """The settings of a subcommand with `~` replaced in all paths, as no shell has done it in
    `--output=~/page.html` or in quotes.
    """
    changes: dict[str, Any] = {}
    for name, value in vars(settings).items():
        flag = f"--{name}".replace("_", "-")
        if isinstance(value, Path):
            changes[name] = Path(expand_home(flag, str(value)))
        elif isinstance(value, tuple) and value and isinstance(value[0], Path):
            changes[name] = tuple(Path(expand_home(flag, str(path))) for path in value)
        elif is_dataclass(value) and (inner := expand_paths(value)) is not value:
            changes[name] = inner
    return replace(settings, **changes) if changes else settings  # type: ignore[type-var]


def parse_config(words: list[str], program: str) -> tuple[Config, str]:
    """The config of ``--config FILE`` with the flags that follow, and its name. Help lists all
    settings of a config.
    """
    import tyro

    given, flags = tyro.cli(ConfigFile, args=words, add_help=False, return_unknown_args=True)
    if given.config is None and {"-h", "--help"} & set(flags):
        return override(Config(), flags, f"{program} --config FILE"), ""
    return read_config(expand_paths(given).config, flags, program)


def read_config(file: Path | None, flags: list[str], program: str) -> tuple[Config, str]:
    """The config of a file, changed by flags, and its name. Raises ``ConfigError``."""
    if file is None:
        there = sorted(str(path) for path in Path("configs").glob("*.py"))
        raise ConfigError(
            "--config is missing: the Python file of a run, such as "
            + (", ".join(there) or "configs/quickstart.py")
            + "."
        )
    config = load_config_file(file)
    if file.suffix == ".py":  # what a command wrote in a config.json is nobody's mistake
        warn_of_file(config, file)
    config = override(config, flags, f"{program} --config {file}")
    # One config.json is like another: its directory has the name.
    return config, file.parent.name if file.suffix == ".json" else file.stem


def override(config: Config, flags: list[str], program: str) -> Config:
    """The config with the settings of flags; help and wrong flags end the process, as in
    ``parse_settings``. Raises ``ConfigError`` for flags without effect.
    """
    import tyro

    made = tyro.cli(
        Config,
        args=lengthen(flags),
        default=config,
        prog=program,
        description="Every setting below can be overridden; the defaults are those of the file."
        " --model.moe.* may be written as --moe.*, and --model.moe.balance.* as --balance.*:"
        " --moe.top-k 2 --balance.loss-weight 0.01.",
        registry=_read_mixtures(),
        config=(tyro.conf.FlagConversionOff,),  # --mesh.fsdp True, as for truths that may be None
    )
    check_flags(made, config)
    return made


def _read_mixtures() -> Any:
    """A mixture is given by its file; without this, tyro would make commands of its types."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def read(info: Any) -> Any:
        if info.type != get_type_hints(DataConfig)["mixture"]:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="{None}|FILE.toml",
            instance_from_str=lambda words: None if words[0] == "None" else words[0],
            is_instance=lambda value: value is None or isinstance(value, tuple),
            str_from_instance=lambda value: [", ".join(s.name for s in value) if value else "None"],
        )

    return registry


def _first_capital(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


@contextlib.contextmanager
def errors_as_messages() -> Iterator[None]:
    """A ``UserError``, or a file that cannot be read or written, becomes a message on standard
    error and ends the process with its code. Whoever reads the standard output may stop reading.
    """
    sys.unraisablehook = partial(_without_orbax_callbacks, sys.unraisablehook)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        try:
            prepare_streams()
            yield
        finally:
            sys.stdout.flush()  # here, as Python's own end would print a traceback
    except UserError as error:
        _end(error, str(error), error.exit_code)
    except OSError as error:
        if error.errno is None:
            raise
        _end(error, explain(error), UserError.exit_code)
    except (RuntimeError, AssertionError, MemoryError) as error:
        message = explain_no_memory(error) or explain_no_devices()
        if message is None and find_lines(error):
            message = f"in code of your own: {describe_error(error)}"
        if message is None:
            raise
        _end(error, message, UserError.exit_code)
    except Exception as error:
        if not find_lines(error):
            raise
        _end(error, f"in code of your own: {describe_error(error)}", UserError.exit_code)


def explain_no_memory(error: Exception) -> str | None:
    """What to say of an error, if it is that memory was not enough; else None."""
    words = (str(error).strip().splitlines() or [""])[0]
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in words:
        return None
    return (
        f"memory is not enough: {words.removeprefix('RESOURCE_EXHAUSTED: ').rstrip('.')}. A smaller"
        f" model, smaller batches, shorter sequences, fewer --tokens or more devices need less;"
        f" `moejax plan` says how much a config needs."
    )


def prepare_streams() -> None:
    """Let any text be printed: letters that the output's encoding lacks become question marks. A
    stream that is closed from the start is an empty one.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 (open until the end)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _end(error: Exception, words: str, code: int) -> NoReturn:
    if isinstance(error, BrokenPipeError) or isinstance(error.__cause__, BrokenPipeError):
        os._exit(1)  # whoever read what is printed has seen enough
    print(f"error: {words}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)  # without what a broken save's threads would print at the end


def _without_orbax_callbacks(
    otherwise: Callable[["sys.UnraisableHookArgs"], object], raised: "sys.UnraisableHookArgs"
) -> None:
    """When a save fails, TensorStore's threads go on calling an event loop that Orbax has closed;
    the failure itself has its own message.
    """
    if str(raised.exc_value) != "Event loop is closed":
        otherwise(raised)
