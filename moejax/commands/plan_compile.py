"""`moejax plan compile`: a training step compiled for TPUs that are not here."""

import json
from dataclasses import dataclass

from moejax.commands.command_line import ConfigFile, read_config
from moejax.commands.use_cpu import use_cpu
from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.data.tokenizer import load_tokenizer
from moejax.lab.plan.compile_step import describe_step, measure_step


@dataclass(frozen=True, kw_only=True)
class CompileSettings(ConfigFile):
    """What to compile, and for which TPUs."""

    target: str | None = None
    """A TPU and its layout, such as v5p:4x4x8."""
    slices: int = 1
    """Slices of this layout."""
    json: bool = False
    """Print the figures as JSON."""


def plan_compile(settings: CompileSettings, flags: list[str]) -> None:
    """Compile the step and print what it takes. Exits with 1 if it does not fit."""
    use_cpu()
    target, slices = settings.target, settings.slices
    config, _ = read_config(settings.config, flags, "moejax plan compile")
    if target is None:
        raise ConfigError("--target is missing: a TPU and its layout, v5p:4x4x8 say.")
    check(slices > 0, f"--slices must be greater than 0, not {slices}.")
    check(
        config.model.material.language or config.model.vocab_size is not None,
        "--model.vocab-size is missing: the number of classes of the images.",
    )
    size = config.model.vocab_size or load_tokenizer(config.data.tokenizer).vocab_size
    result = measure_step(config, target, slices, size)
    print(json.dumps(result, indent=2) if settings.json else describe_step(result), flush=True)
    if not result["fits"]:
        raise SystemExit(1)
