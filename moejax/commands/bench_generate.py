"""`moejax bench generate`: prompts and decode steps, in tokens and bytes a second."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tyro

from moejax.commands.command_line import ConfigFile, read_config
from moejax.commands.released_config import read_fields, read_released
from moejax.commands.use_cpu import use_cpu
from moejax.config.checks import check
from moejax.config.config import Config
from moejax.config.need import Need
from moejax.data.tokenizer import load_tokenizer
from moejax.lab.bench import generation
from moejax.lab.bench.peers import check_libraries
from moejax.runtime.allocator import take_gpu_memory_as_needed

PROGRAM = "moejax bench generate"


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(ConfigFile):
    """Which model, and what is measured."""

    hf: Path | None = None
    """A config.json of Hugging Face, or a directory with one, instead of --config."""
    bench: tyro.conf.OmitArgPrefixes[generation.GenerationBench]
    json: bool = False
    """Print the figures as JSON."""

    NEEDS: ClassVar[tuple[Need, ...]] = (
        Need(
            ("bench.rounds",),
            lambda s: not (s.bench.compiled or s.bench.target),
            "--compiled or --target, which time nothing",
            "leave it out",
        ),
        Need(
            ("bench.group",),
            lambda s: s.bench.weights is not None,
            "--weights int8, int4 or fp8",
            "give that, too",
            says="has no effect without",
        ),
    )

    def __post_init__(self) -> None:
        check(
            (self.config is None) != (self.hf is None),
            "say which model: --config FILE (a config of moejax), or --hf FILE (the config.json of"
            " a released model), one of them.",
        )


def bench_generate(settings: GenerationSettings, flags: list[str]) -> None:
    """Measure and print. Raises ``UserError``."""
    bench = settings.bench
    if bench.target is not None:
        use_cpu()
    take_gpu_memory_as_needed()
    if bench.peers:
        check_libraries("--peers")
    config, fields = read_model(settings, flags)
    size = config.model.vocab_size or load_tokenizer(config.data.tokenizer).vocab_size
    result = generation.measure(bench, config, size, fields)
    print(json.dumps(result, indent=2) if settings.json else generation.report(result), flush=True)


def read_model(
    settings: GenerationSettings, flags: list[str]
) -> tuple[Config, dict[str, Any] | None]:
    """The config, and the config.json that it was read from."""
    if settings.hf is not None:
        fields = read_fields(settings.hf)
        return read_released(settings.hf, fields, flags, PROGRAM), fields
    config, _ = read_config(settings.config, flags, PROGRAM)
    check(
        config.model.material.language,
        f"--model.kind {config.model.kind}: only language models generate text.",
    )
    return config, None
