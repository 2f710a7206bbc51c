"""`moejax bench serve`: how fast a model is served, in this process or by a server that runs.

Letters: P: places of experts and replicas; R: replicas of an expert.
"""

import asyncio
import json
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import tyro

from moejax.commands.model_settings import ModelSettings, open_language_model
from moejax.commands.speculation_needs import SPECULATION
from moejax.config.checks import check, check_positive
from moejax.config.mesh import MeshConfig
from moejax.config.need import Need
from moejax.data.tokenizer import load_tokenizer
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.open_engine import open_engine
from moejax.inference.engine.placed_experts import add_places
from moejax.inference.engine.rebalance import RebalanceSettings, follow_load
from moejax.inference.engine.speculation import SpeculationSettings
from moejax.inference.server.keys import read_keys
from moejax.lab.bench import serving
from moejax.lab.bench.serve_alone import OneByOne, step_seconds
from moejax.lab.bench.serve_client import Server, read_url
from moejax.lab.bench.serve_drafts import WithDrafts
from moejax.lab.bench.serve_figures import report
from moejax.lab.bench.serve_load import Texts
from moejax.lab.bench.serve_moves import with_moves
from moejax.lab.bench.serve_page import write_page
from moejax.runtime.atomic_files import write_text
from moejax.runtime.writing import writing_to

AT_ONCE = 32
"""Requests at once to a server, where nobody says."""
_NOWHERE = Path()


@dataclass(frozen=True, kw_only=True)
class ServeBenchSettings(ModelSettings):
    """Which model or server, and what is measured."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="[DIRECTORY]")] = _NOWHERE
    """The directory of a run, of an imported model, or of a checkpoint of Hugging Face, which is
    served in this process; without it, --url."""
    url: str | None = None
    """A server that runs, such as http://127.0.0.1:8000, instead of a model. It is asked by
    POST /v1/completions, in streams."""
    model: str | None = None
    """With --url: the name of the model there; by default the first one that it has."""
    api_key_file: Path | None = None
    """With --url: a file whose first line is the API key."""
    tokenizer: str = "bytes"
    """With --url: what makes tokens of texts, `bytes` or a tokenizer.json. It should be that of the
    model; token ids are what is sent."""
    max_time: float = 600.0
    """With --url: seconds after which a request has failed."""
    bench: tyro.conf.OmitArgPrefixes[serving.ServeBench]
    engine: tyro.conf.OmitArgPrefixes[EngineSettings] = field(default_factory=EngineSettings)
    moves: tyro.conf.OmitArgPrefixes[RebalanceSettings] = field(default_factory=RebalanceSettings)
    speculation: tyro.conf.OmitArgPrefixes[SpeculationSettings] = field(
        default_factory=SpeculationSettings
    )

    NEEDS: ClassVar[tuple[Need, ...]] = (
        *ModelSettings.NEEDS,
        Need(
            ("model", "api_key_file", "tokenizer", "max_time"),
            lambda s: s.url is not None,
            "--url",
            "give that, too",
            says="has no effect without",
        ),
        Need(
            (
                *("config", "step", "dtype", "weights", "bench.compare"),
                *(f"mesh.{one.name}" for one in fields(MeshConfig)),
                *(f"engine.{one.name}" for one in fields(EngineSettings)),
                *(f"moves.{one.name}" for one in fields(RebalanceSettings)),
                *(f"speculation.{one.name}" for one in fields(SpeculationSettings)),
            ),
            lambda s: s.url is None,
            "--url, as the server has its own",
            "give the directory of a model instead of --url",
        ),
        Need(
            ("bench.output",),
            lambda s: s.bench.draws,
            "several rates",
            "give --rate with several numbers, or --sweep",
            says="has no effect without",
        ),
        *SPECULATION,
        Need(
            ("bench.requests", *(f"bench.{n}" for n in ("prompt", "tokens"))),
            lambda s: s.bench.load is None or s.bench.requests is not None,
            "--load, which has the requests",
            "leave it out",
        ),
    )

    def __post_init__(self) -> None:
        check_positive("", self, "max_time")
        check(
            (self.url is None) != (self.path == _NOWHERE),
            "say what to ask: the DIRECTORY of a model, or --url of a server that runs, one of"
            " them.",
        )
        check(
            self.moves.rebalance is None or not self.bench.compare,
            f"--compare {self.bench.compare} continues texts by `moejax generate`, whose experts"
            f" stay where they are, and --rebalance moves them: leave one of them out.",
        )
        if self.url is None:
            self.moves.check_devices(self.mesh.expert)


def bench_serve(settings: ServeBenchSettings) -> None:
    """Measure and print. Raises ``UserError``."""
    result = _bench_engine(settings) if settings.url is None else _bench_server(settings)
    bench = settings.bench
    result = {"settings": _plain(asdict(bench))} | result
    if bench.draws:
        with writing_to("--output FILE"):
            write_text(bench.output, write_page(result))
        result["picture"] = str(bench.output)
    print(json.dumps(result, indent=2) if settings.json else report(result), flush=True)
    if not all(point["answered"] for point in result["points"]):
        raise SystemExit(1)


def _bench_engine(settings: ServeBenchSettings) -> dict[str, Any]:
    bench, engine_settings = settings.bench, settings.engine
    model, mesh = open_language_model(settings)
    tokenizer = model.tokenizer
    assert tokenizer is not None  # as in every language model that is opened here
    one_by_one = None
    window = engine_settings.window or model.context
    if bench.compare:
        one_by_one = OneByOne(model, mesh, window, bench.temperature, bench.seed)
    place_LER, expert_LP, seconds = None, None, settings.moves.rebalance
    if seconds is not None:
        model, expert_LP, place_LER = add_places(model, mesh, settings.moves.replicas)
    guessing = settings.speculation
    speculates = guessing.speculate != "none"
    if speculates:  # the load is sent twice, and the second time is to have no advantage
        engine_settings = replace(engine_settings, share_prefixes=False)
    with (
        open_engine(model, mesh, engine_settings, place_LER, guessing=guessing) as engine,
        follow_load(engine, model.config, mesh, expert_LP, seconds),
    ):
        sizes = engine.runner.sizes
        drive = WithDrafts(engine).drive if speculates else serving.drive_once
        target = serving.Target(
            words=f"{settings.path}: {model.description}",
            ask=serving.ask_engine(engine, bench.temperature, bench.seed),
            texts=Texts(tokenizer, model.vocab_size, bench.topics),
            at_once=sizes.lanes * sizes.seats,
            step=lambda rows, length: step_seconds(engine, rows, length, bench.temperature),
            one_by_one=one_by_one,
            drive=drive if seconds is None else with_moves(engine, drive),
            facts={"backend": jax.default_backend(), "sizes": asdict(sizes)},
        )
        return serving.measure(bench, target)


def _bench_server(settings: ServeBenchSettings) -> dict[str, Any]:
    assert settings.url is not None
    host, port, path, tls = read_url(settings.url)
    bench, file = settings.bench, settings.api_key_file
    server = partial(
        Server,
        host=host,
        port=port,
        path=path,
        tls=tls,
        key=None if file is None else read_keys(file)[0],
        seconds=settings.max_time,
        temperature=bench.temperature,
        seed=bench.seed,
    )
    name = settings.model or asyncio.run(server().first_model())
    tokenizer = load_tokenizer(settings.tokenizer)
    target = serving.Target(
        words=f"{name}, at {settings.url}",
        ask=server(model=name).ask,
        texts=Texts(tokenizer, tokenizer.vocab_size, bench.topics),
        at_once=AT_ONCE,
    )
    return serving.measure(bench, target)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values as JSON has them."""
    return {name: str(x) if isinstance(x, Path) else x for name, x in values.items()}
