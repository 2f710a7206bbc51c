"""`moejax plan cost`: what a config will cost, from its settings alone."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from moejax.commands.command_line import ConfigFile, read_config
from moejax.commands.released_config import read_fields, read_released
from moejax.commands.use_cpu import use_cpu
from moejax.config.checks import check, check_positive
from moejax.config.errors import ConfigError
from moejax.config.need import Need
from moejax.data.tokenizer import load_tokenizer
from moejax.lab.plan.cost_report import describe_devices, table, to_json
from moejax.lab.plan.devices import DEVICES, paper_mesh
from moejax.lab.plan.plan_sections import make_plan
from moejax.lab.plan.read_load import read_shares
from moejax.lab.plan.roofline_chart import roofline_chart
from moejax.lab.plan.roofline_section import find_roofline, list_known
from moejax.lab.plan.sections import PlanRequest
from moejax.runtime import device_fit
from moejax.runtime.atomic_files import write_text


@dataclass(frozen=True, kw_only=True)
class CostSettings(ConfigFile):
    """What to plan, and for which devices."""

    hf: Path | None = None
    """A config.json of Hugging Face, instead of --config."""
    load: Path | None = None
    """Load of each expert: a run's load/STEP.npz, its directory, or .npy; by default even."""
    devices: int | None = None
    """Devices; by default as few as the config's mesh has."""
    device: Annotated[str, tyro.conf.arg(metavar="|".join(DEVICES))] = "v5p"
    """Kind of the devices."""
    context: int | None = None
    """Positions in the cache of keys and values; by default those of a sequence."""
    sequences: int = 1
    """Sequences in the cache."""
    chart: Path | None = None
    """Draw the least time of each part of a step into this file, an SVG."""
    explain: bool = False
    """The arithmetic under each line."""
    json: bool = False
    """Print the plan as JSON."""

    NEEDS: ClassVar[tuple[Need, ...]] = (
        Need(("explain",), lambda s: not s.json, "--json", "leave --json out", twin=True),
    )

    def __post_init__(self) -> None:
        check_positive("", self, "devices", "context", "sequences")
        check(
            self.device in DEVICES,
            f"--device {self.device} is not known. There are: {', '.join(DEVICES)}.",
        )
        check(
            self.config is not None or self.hf is not None,
            "say what to plan: --config FILE (a config of moejax), or --hf FILE (the config.json of"
            " a released model).",
        )
        check(
            self.config is None or self.hf is None,
            "--config and --hf exclude each other: leave one out.",
        )
        check(
            self.chart is None or self.chart.suffix == ".svg",
            f"--chart must end in .svg, not be {self.chart}.",
        )


def plan_cost(settings: CostSettings, flags: list[str]) -> None:
    """Print the plan."""
    use_cpu()
    request = make_request(settings, flags)
    if settings.chart is not None:
        write_chart(request, settings.chart)
    sections = make_plan(request)
    if settings.json:
        print(json.dumps(to_json(request, sections), indent=2))
        return
    print(table(request, sections, settings.explain), flush=True)


def write_chart(request: PlanRequest, file: Path) -> None:
    """Draw the roofline. Raises ``ConfigError`` for devices whose peaks are not known, and
    ``UserError`` if the file cannot be written.
    """
    found = find_roofline(request)
    check(
        found is not None,
        f"--chart {file}: the peaks of --device {request.kind} are not known for --model.dtype"
        f" {request.config.model.dtype}. Take another device: {', '.join(list_known())}.",
    )
    assert found is not None
    try:
        write_text(file, roofline_chart(found, describe_devices(request)))
    except OSError as error:
        raise ConfigError(f"--chart {file} cannot be written: {error.strerror}.") from error


def make_request(settings: CostSettings, flags: list[str]) -> PlanRequest:
    """What the settings, and the flags of a config, ask for. Raises ``UserError`` for what cannot
    be.
    """
    if settings.config is not None:
        config, _ = read_config(settings.config, flags, "moejax plan")
    else:
        assert settings.hf is not None  # as there is no --config
        fields, rows = read_fields(settings.hf), settings.devices or 1
        config = read_released(settings.hf, fields, flags, "moejax plan", rows)
    model = config.model
    check(
        model.material.language,
        f"--model.kind {model.kind}: a plan is of a language model. What an image classifier costs"
        f" stands at the head of its training, and by part in its summary.json.",
    )
    size = model.vocab_size or load_tokenizer(config.data.tokenizer).vocab_size
    grid = paper_mesh(config.mesh, settings.devices, settings.device)
    device_fit.check_fits(config, grid)
    device_fit.check_host(config, DEVICES[settings.device].platform)
    if settings.load is not None and not any(model.routed_layers):
        warnings.warn(
            f"--load {settings.load} has no effect with --model.moe.every 0, which makes every"
            f" layer dense: leave it out.",
            stacklevel=2,
        )
    return PlanRequest(
        config=config,
        vocab_size=size,
        grid=grid,
        kind=settings.device,
        share_LE=read_shares(settings.load, model) if model.moe.every else read_shares(None, model),
        load="even" if settings.load is None else str(settings.load),
        context=settings.context or config.data.sequence_length,
        sequences=settings.sequences,
    )
