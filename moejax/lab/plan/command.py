"""`moejax plan`: its flags, and what they ask for."""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

from moejax.commands.command_line import overridden, parse
from moejax.config.checks import check
from moejax.config.config import Config
from moejax.config.data import DataConfig
from moejax.config.errors import UserError
from moejax.data.tokenizer import load_tokenizer
from moejax.hf.configs import read_config
from moejax.lab.plan.cost_report import table, to_json
from moejax.lab.plan.devices import DEVICES, paper_mesh
from moejax.lab.plan.plan_sections import make_plan
from moejax.lab.plan.read_load import read_shares
from moejax.lab.plan.sections import PlanRequest
from moejax.runtime import device_fit

LENGTH = 4096
"""Positions in a sequence where only a model's config.json is known."""


@dataclass(frozen=True)
class Flags:
    """Those beside the settings of a config."""

    hf: Path | None
    load: Path | None
    devices: int | None
    device: str
    context: int | None
    sequences: int


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `moejax plan` beside those of a config."""
    parser.add_argument(
        "--hf", type=Path, metavar="FILE", help="a config.json of Hugging Face, instead of --config"
    )
    parser.add_argument(
        "--load",
        type=Path,
        metavar="FILE|RUN",
        help="load of each expert: a run's load/STEP.npz, its directory, .npy; by default even",
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="by default as few as the config's mesh has"
    )
    parser.add_argument("--device", choices=DEVICES, default="v5p", help="by default v5p")
    parser.add_argument(
        "--context", type=int, metavar="N", help="positions in the cache of keys and values"
    )
    parser.add_argument("--sequences", type=int, default=1, metavar="B", help="sequences in it")
    parser.add_argument("--explain", action="store_true", help="the arithmetic under each line")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Print the plan."""
    flags = Flags(
        arguments.hf,
        arguments.load,
        arguments.devices,
        arguments.device,
        arguments.context,
        arguments.sequences,
    )
    request = asked_for(flags, arguments.rest)
    sections = make_plan(request)
    if arguments.json:
        print(json.dumps(to_json(request, sections), indent=2))
        return
    print(table(request, sections, arguments.explain), flush=True)


def asked_for(flags: Flags, rest: list[str]) -> PlanRequest:
    """What flags and a config's settings ask for. Raises ``UserError`` for what cannot be."""
    for name in ("devices", "context", "sequences"):
        value = getattr(flags, name)
        check(value is None or value > 0, f"--{name} must be greater than 0, not {value}.")
    given = any(word == "--config" or word.startswith("--config=") for word in rest)
    check(
        given or flags.hf is not None,
        "say what to plan: --config FILE (a config of moejax), or --hf FILE (the config.json of a"
        " released model).",
    )
    check(not given or flags.hf is None, "--config and --hf exclude each other: leave one out.")
    config = parse(rest, "moejax plan")[0] if given else of_released(flags, rest)
    model = config.model
    check(
        not model.sees_images,
        f"--model.kind {model.kind}: a plan is of a language model. What an image classifier costs"
        f" stands at the head of its training, and by part in its summary.json.",
    )
    size = model.vocab_size or load_tokenizer(config.data.tokenizer).vocab_size
    grid = paper_mesh(config.mesh, flags.devices, flags.device)
    device_fit.check_fits(config, grid)
    return PlanRequest(
        config=config,
        vocab_size=size,
        grid=grid,
        kind=flags.device,
        share_LE=read_shares(flags.load, model) if model.moe.every else read_shares(None, model),
        load="even" if flags.load is None else str(flags.load),
        context=flags.context or config.data.sequence_length,
        sequences=flags.sequences,
    )


def of_released(flags: Flags, rest: list[str]) -> Config:
    """A released model, trained on a sequence a device in bfloat16, with what flags change."""
    try:
        hf = json.loads(flags.hf.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--hf {flags.hf} cannot be read: {error}. It should be the config.json of a model."
        ) from error
    check(isinstance(hf, dict), f"--hf {flags.hf} is not a JSON object.")
    try:
        model = read_config(hf)
    except UserError as error:
        raise UserError(f"--hf {flags.hf}: {error}") from error
    rows = flags.devices or 1
    data = DataConfig(sequence_length=LENGTH, batch_size=rows, eval_batch_size=rows)
    config = Config(model=replace(model, dtype="bfloat16", remat="layer"), data=data)
    return overridden(config, rest, f"moejax plan --hf {flags.hf}")
