"""Settings from and to files."""

import dataclasses
import importlib.util
import shlex
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from moejax.config.checks import check, shorten
from moejax.config.config import Config
from moejax.config.errors import ConfigError
from moejax.config.json_files import read_json
from moejax.config.own_code import FOLDER, describe_error, note_file, note_routers
from moejax.routing.routers import ROUTERS

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """The settings as nested dicts of plain values, as written to ``config.json``."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: dict[str, Any], at: str = "") -> Any:
    """The inverse of ``to_dict``: a dataclass from nested dicts; unknown fields are errors."""
    check(
        isinstance(values, dict), f"{at or 'the whole'} should be an object, not {shorten(values)}."
    )
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    more = f" and {len(unknown) - 5} more" * (len(unknown) > 5)
    check(not unknown, f"unknown settings: {', '.join(at + n for n in unknown[:5])}{more}.")
    nested = {
        name: from_dict(hints[name], value, f"{at}{name}.")
        if dataclasses.is_dataclass(hints[name])
        else value
        for name, value in values.items()
    }
    return cls(**nested)


def load_config_file(path: str | Path) -> Config:
    """Run ``get_config()`` of a config file, or read the ``config.json`` of a run or an imported
    model. Raises ``ConfigError`` when there is none, or it fails.
    """
    path = Path(path)
    if path.suffix == ".json":
        check(path.is_file(), f"no config file {path}.")
        return _find_model_beside(read_config_json(path), path.parent)
    return call_file(path, "get_config", Config, "config")


def _find_model_beside(config: Config, directory: Path) -> Config:
    """The settings of an imported model, which lies beside them if it is no longer where it was:
    it was moved, or named by a path from another folder.
    """
    begins_from, tokenizer = config.run.init_from, directory / "tokenizer.json"
    if begins_from is None or Path(begins_from).exists() or not (directory / "model").is_dir():
        return config
    data = config.data
    if data.tokenizer != "bytes" and tokenizer.is_file():
        data = dataclasses.replace(data, tokenizer=str(tokenizer))
    run = dataclasses.replace(config.run, init_from=str(directory))
    return dataclasses.replace(config, data=data, run=run)


def call_file(path: str | Path, function: str, kind: type[T], what: str) -> T:
    """What ``function()`` of a Python file returns, which must be of ``kind``; ``what`` is the
    sort of file, for messages. Raises ``ConfigError``, naming the file, whatever is wrong.
    """
    path = Path(path)
    check(path.suffix == ".py", f"{path} is not a Python file, as a {what} file must be.")
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise ConfigError(
            f"no {what} file {path}." + (f" There are: {', '.join(near)}." * bool(near))
        )
    before = dict(ROUTERS)
    note_file(path)
    try:
        module = _run_file(path)
        check(hasattr(module, function), f"{path} has no function {function}() -> {kind.__name__}.")
        made = getattr(module, function)()
    except ConfigError as error:
        if str(path) in str(error):
            raise
        raise ConfigError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        _let_signals_pass(error)
        raise ConfigError(f"{path}: {function}() failed: {describe_error(error)}") from error
    note_routers(path, before)
    check(
        isinstance(made, kind),
        f"{path}: {function}() must return a {kind.__name__}, not {type(made).__name__}.",
    )
    return made


def _run_file(path: Path) -> types.ModuleType:
    """Import one file, without leaving a module of its name behind for others to find."""
    spec = importlib.util.spec_from_file_location(f"moejax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # as for any file that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # a config may build on the one beside it
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        _let_signals_pass(error)
        raise ConfigError(f"{path} cannot be run: {describe_error(error)}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _let_signals_pass(error: BaseException) -> None:
    """Raise again what is not of the file: Ctrl-C ends the process by an exit of its own kind."""
    if isinstance(error, SystemExit) and type(error) is not SystemExit:
        raise error


def read_config_json(path: Path) -> Config:
    """The settings of a run directory. Raises ``ConfigError``, which says what else the file may
    be.
    """
    try:
        found = read_json(path)
        _check_kind(path, found)
        return from_dict(Config, found)
    except NotRead:
        raise
    except (ConfigError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error}.") from error


class NotRead(ConfigError):
    """A ``config.json`` that is not damaged, but cannot be read as it is."""


def _check_kind(path: Path, found: Any) -> None:
    """Raise ``NotRead`` for the settings of a released model, and for a router that is not here."""
    if not isinstance(found, dict):
        return
    here = shlex.quote(str(path.parent))
    if "model_type" in found or "architectures" in found:
        raise NotRead(
            f"{path} is the config.json of a released model, not of a run. `moejax import {here}"
            f" NEW` brings the model into a directory to train from (--config NEW/config.json); to"
            f" begin from it with settings of your own, give --run.init-from {here}."
        )
    model = found.get("model")
    moe = model.get("moe") if isinstance(model, dict) else None
    router = moe.get("router") if isinstance(moe, dict) else None
    if isinstance(router, str) and router not in ROUTERS:
        kept = sorted((path.parent / FOLDER).glob("*.py"))
        file = f"{shlex.quote(str(kept[0]))}, its copy" if kept else "FILE, the Python file"
        raise NotRead(
            f"{path} has --model.moe.router {router}, which is not one of moejax's. If it is a"
            f" router of your own, give --config {file} that registers it."
        )


def differences(old: Any, new: Any, at: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields that differ between two configs: ``{"optim.learning_rate": (old, new)}``."""
    found: dict[str, tuple[Any, Any]] = {}
    for item in dataclasses.fields(old):
        before, after = getattr(old, item.name), getattr(new, item.name)
        if dataclasses.is_dataclass(before):
            found |= differences(before, after, f"{at}{item.name}.")
        elif before != after:
            found[at + item.name] = (before, after)
    return found


def flatten(values: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Nested dicts as one: ``{"optim": {"beta1": 0.9}}`` as ``{"optim.beta1": 0.9}``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        found |= flatten(value, f"{at}{name}.") if inner else {at + name: value}
    return found
