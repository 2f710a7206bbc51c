"""`moejax serve`: a model behind OpenAI's HTTP interface.

Letters: P: places of experts and replicas; R: replicas of an expert.
"""

import json
import signal
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from socket import socket
from typing import Any, ClassVar

import tyro

from moejax.commands.generate import place_experts
from moejax.commands.model_settings import ModelSettings, open_language_model
from moejax.commands.speculation_needs import SPECULATION
from moejax.config.checks import check
from moejax.config.need import Need
from moejax.inference.engine.engine import Engine
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.open_engine import open_engine
from moejax.inference.engine.placed_experts import add_places
from moejax.inference.engine.rebalance import RebalanceSettings, follow_load
from moejax.inference.engine.speculation import SpeculationSettings
from moejax.inference.open_model import OpenModel
from moejax.inference.server.keys import read_keys
from moejax.inference.server.limits import Limits
from moejax.runtime.stop import StopSignals

_EXTRA = ("starlette", "uvicorn", "prometheus_client")
_GLANCE = 1.0
"""Seconds between two looks at whether all still works."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings(ModelSettings):
    """The settings of `moejax serve`."""

    host: str = "127.0.0.1"
    """The address to listen on. By default programs on this computer alone reach the server; all
    others can with 0.0.0.0, and then --api-key-file says who may."""
    port: int = 8000
    """The port; 0 takes a free one."""
    name: str | None = None
    """By which clients name the model; by default the name of its directory."""
    api_key_file: Path | None = None
    """A file with a key on each line: requests must have one of them."""
    chat_template: str | None = None
    """How conversations are written: `auto` (the model's own), chatml, llama3, plain, or a file; by
    default as the model was trained, else its own."""
    placement: Path | None = None
    """A file with what `moejax plan placement --json` printed: experts of high load get replicas.
    --mesh.expert must be the number of devices of the plan."""
    limits: tyro.conf.OmitArgPrefixes[Limits] = field(default_factory=Limits)
    engine: tyro.conf.OmitArgPrefixes[EngineSettings] = field(default_factory=EngineSettings)
    speculation: tyro.conf.OmitArgPrefixes[SpeculationSettings] = field(
        default_factory=SpeculationSettings
    )
    moves: tyro.conf.OmitArgPrefixes[RebalanceSettings] = field(default_factory=RebalanceSettings)

    NEEDS: ClassVar[tuple[Need, ...]] = (*ModelSettings.NEEDS, *SPECULATION)

    def __post_init__(self) -> None:
        check(0 <= self.port < 2**16, f"--port must lie in 0 to {2**16 - 1:,}, not {self.port}.")
        check(
            self.name is None or bool(self.name.strip()),
            "--name must not be empty: leave it out for the name of the directory.",
        )
        check(
            self.placement is None or self.moves.rebalance is None,
            f"--placement {self.placement} says where experts stay, and --rebalance moves them:"
            f" leave one of them out.",
        )
        self.moves.check_devices(self.mesh.expert)


class ServeSignals(StopSignals):
    """While a server answers: the first signal lets it drain."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = threading.Event()

    def hear(self, signum: int) -> tuple[str, bool]:
        """Take a signal; returns the line about it, and whether it ends the process at once."""
        name, before = signal.Signals(signum).name, self.signum
        self.signum = signum
        self.heard.set()
        if before is not None:
            return f"{name}: ends at once.", True
        return (
            f"{name}: heard. No more requests are taken, and those that are there are answered; a"
            f" second signal ends at once.",
            False,
        )


def serve(settings: ServeSettings) -> None:
    """Serve a model until a signal comes."""
    check_extra()
    from moejax.inference.server import listen  # late: it needs the extra

    file, limits = settings.api_key_file, settings.limits
    keys = [] if file is None else read_keys(file)
    with closing(listen.open_socket(settings.host, settings.port, limits.max_time)) as sock:
        model, mesh = open_language_model(settings)
        model = choose_template(model, settings.chat_template)
        place_LER: Any = None
        expert_LP, seconds = None, settings.moves.rebalance
        if seconds is not None:
            model, expert_LP, place_LER = add_places(model, mesh, settings.moves.replicas)
        elif settings.placement is not None:
            params, place_LER = place_experts(settings.placement, model, mesh)
            model = replace(model, params=params)
        given = (model, mesh, settings.engine, place_LER, tell)
        with (
            open_engine(*given, settings.speculation) as engine,
            follow_load(engine, model.config, mesh, expert_LP, seconds),
        ):
            serve_engine(settings, model, engine, sock, keys)


def serve_engine(
    settings: ServeSettings, model: OpenModel, engine: Engine, sock: socket, keys: list[str]
) -> None:
    """Answer on a socket until a signal comes, and what was asked for until then. Raises what stops
    the engine.
    """
    from moejax.inference.server.app import make_app
    from moejax.inference.server.listen import Listener, name_hosts
    from moejax.inference.server.served import Served

    served = Served(
        name=settings.name or settings.path.resolve().name,
        model=model,
        engine=engine,
        limits=settings.limits,
        window=settings.engine.window or model.context,
        created=int(time.time()),
    )
    hosts = () if keys else name_hosts(settings.host)
    listener = Listener(make_app(served, keys, hosts), sock, settings.limits.max_time)
    with ServeSignals() as signals:
        tell(f"{served.name}: {model.description}, at {listener.url}/v1")
        print(ready_words(settings, served.name, listener.url), flush=True)
        try:
            while not signals.heard.wait(_GLANCE):
                listener.check()
                if engine.failed is not None:
                    raise engine.failed
        finally:
            listener.drain()


def tell(line: str) -> None:
    """Say something beside the line that programs wait for."""
    print(line, file=sys.stderr, flush=True)


def ready_words(settings: ServeSettings, name: str, url: str) -> str:
    """The line that says that requests are answered."""
    if settings.json:
        return json.dumps({"ready": True, "model": name, "url": url})
    return "ready"


def choose_template(model: OpenModel, given: str | None) -> OpenModel:
    """The model with the chat template that a flag names. Raises ``ConfigError`` if it is none."""
    if given is None:
        return model
    model = replace(model, chat_template=given)
    _ = model.template
    return model


def check_extra() -> None:
    """Raise ``ConfigError`` if the libraries for serving are missing."""
    missing = [name for name in _EXTRA if find_spec(name) is None]
    check(
        not missing,
        f"`moejax serve` needs {', '.join(missing)}: pip install -e '.[serve]'",
    )
