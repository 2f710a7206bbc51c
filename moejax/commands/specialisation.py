"""`moejax specialisation`: what each expert of a trained model takes."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from moejax.commands.inference import OnText, check_batch, opened, text_of
from moejax.config.checks import check, check_positive
from moejax.config.model import ModelConfig
from moejax.config.moe import MoEConfig
from moejax.inference.generation import for_inference, undivided
from moejax.inference.opening import OpenModel
from moejax.lab.specialisation.association import (
    Association,
    Choices,
    associate,
    draw_shifts,
    strongest,
)
from moejax.lab.specialisation.sample import Sample, draw_sample
from moejax.lab.specialisation.snippets import portraits
from moejax.lab.specialisation.specialisation_page import Findings, specialisation_html
from moejax.models.decoder import DecoderLM
from moejax.runs.run_directory import finite
from moejax.runtime import batch_rows, partition
from moejax.runtime.number_words import duration

MOST_PORTRAITS = 256
"""Experts that are shown with text, over all layers."""
MOST_TOKENS = 2**24
STRONGEST = 12


@dataclass(frozen=True, kw_only=True)
class Specialisation(OnText):
    """The settings of `moejax specialisation`."""

    batch_size: int | None = 16
    """Sequences in a batch, over all devices."""
    tokens: int = 65_536
    """Tokens to look at, spread evenly over all documents."""
    shifts: int = 100
    """Shifts of the classes against the routing, which say what chance gives."""
    output: Path | None = None
    """The page; by default specialisation.html in the model's directory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("", self, "tokens", "shifts")
        check(self.shifts >= 10, f"--shifts {self.shifts} give no spread: take 10 or more.")
        check(
            self.tokens <= MOST_TOKENS,
            f"--tokens {self.tokens} cannot be counted exactly: take {MOST_TOKENS:,} at most.",
        )


def specialisation(settings: Specialisation) -> None:
    """Look at the routing, write the page and print a summary."""
    started = time.monotonic()
    path = settings.output or settings.path.expanduser() / "specialisation.html"
    model, mesh = opened(settings)
    check_routed(model.config, settings.path)
    check(path.parent.is_dir(), f"--output {path}: there is no directory {path.parent}.")
    config, length = for_inference(model.config), settings.length(model)
    check_batch(config, length, settings.batch_size, mesh)
    documents, about = text_of(settings, model)
    whole = min(config.moe.group_size, length)
    sample = draw_sample(documents, model.tokenizer, length, settings.tokens, whole)
    found = look(model, config, mesh, sample, settings, about)
    write(path, specialisation_html(found))
    seconds = time.monotonic() - started
    figures = to_json(found) | {"seconds": seconds, "page": str(path)}
    text = json.dumps(finite(figures), indent=2) if settings.json else report(found, path, seconds)
    print(text, flush=True)


def check_routed(config: ModelConfig, path: Path) -> None:
    """Raise ``ConfigError`` for a model whose tokens choose nothing."""
    check(
        any(config.routed_layers),
        f"{path} has no routed layer: a dense model has no experts to look at.",
    )
    moe = config.moe
    check(
        not moe.built_router.slots,
        f"--model.moe.router {moe.router}: every slot holds a part of every token, so that no token"
        f" chooses an expert, and there is nothing to count.",
    )
    check(
        moe.built_router.experts_choose or moe.top_k < moe.num_choices,
        f"--model.moe.router {moe.router} with --model.moe.top-k {moe.top_k}: every token has every"
        f" expert, so that the choice tells nothing.",
    )


def look(
    model: OpenModel,
    config: ModelConfig,
    mesh: Mesh,
    sample: Sample,
    settings: Specialisation,
    about: str,
) -> Findings:
    """Route the sample as it is and shuffled, and compare the choices with its classes."""
    tokens = sample.token_T.size
    check(
        tokens >= 10 * settings.shifts,
        f"the text gives {tokens:,} tokens, too few to tell anything from chance: give more text,"
        f" or fewer --shifts.",
    )
    shuffled_BN, order_T = sample.shuffle()
    rows = settings.batch_size
    choices, shuffled = (
        choices_of(model, config, mesh, sample, inputs_BN, rows)
        for inputs_BN in (sample.inputs_BN, shuffled_BN)
    )
    names = expert_names(config.moe)
    shifts = draw_shifts(tokens, sample.inputs_BN.shape[1], settings.shifts)
    classes, domains = (
        labels and associate(choices, shuffled, labels.label_T, order_T, labels.names, shifts)
        for labels in (sample.classes, sample.domains)
    )
    layers = tuple(i for i, routed in enumerate(config.routed_layers) if routed)
    each = max(2, MOST_PORTRAITS // len(layers))
    return Findings(
        name=settings.path.resolve().name,
        model=model.description,
        data=about,
        layers=layers,
        experts=names,
        tokens=tokens,
        documents=sample.documents,
        not_python=sample.not_python,
        shifts=settings.shifts,
        classes=classes,
        domains=domains,
        portraits=tuple(portraits(sample, choices, classes, each)),
    )


def expert_names(moe: MoEConfig) -> tuple[str, ...]:
    """The number of each expert; those without computation have their kind before it."""
    kinds = (
        ("", moe.num_experts),
        ("identity ", moe.identity_experts),
        ("null ", moe.null_experts),
    )
    return tuple(f"{kind}{i}" for kind, count in kinds for i in range(count))


def choices_of(
    model: OpenModel,
    config: ModelConfig,
    mesh: Mesh,
    sample: Sample,
    inputs_BN: np.ndarray,
    rows: int,
) -> Choices:
    """The experts that each token of the sample asks for, with these inputs in its rows."""
    decoder = DecoderLM(config, model.vocab_size, undivided(model.layout))
    everywhere = partition.named(mesh, "everywhere")

    def run(params: dict, bias_LE: jax.Array | None, batch: dict[str, jax.Array]) -> jax.Array:
        _, routed = decoder.apply({"params": params}, batch, False, bias_LE)
        return jnp.packbits(routed.chosen_LBNE, axis=-1)

    step = jax.jit(run, out_shardings=everywhere)
    packed = []
    with jax.set_mesh(mesh):
        for begin in tqdm(range(0, len(inputs_BN), rows), disable=None, unit="batch", leave=False):
            part = slice(begin, begin + rows)
            batch = batch_of(inputs_BN[part], sample.length_B[part], rows)
            chosen_LBNE = jax.device_get(
                step(model.params, model.bias_LE, batch_rows.place(mesh, batch))
            )
            is_text_BN = sample.is_text_BN[part]
            packed.append(chosen_LBNE[:, : len(is_text_BN)][:, is_text_BN])
    return Choices(np.concatenate(packed, axis=1), config.moe.num_choices)


def batch_of(inputs_BN: np.ndarray, length_B: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """One piece in each row; rows and positions that are missing are padding."""
    inputs_BN = np.pad(inputs_BN, ((0, rows - len(inputs_BN)), (0, 0)))
    length_B = np.pad(length_B, (0, rows - len(length_B)))
    at_BN = np.arange(inputs_BN.shape[1]) * np.ones((rows, 1), np.int32)
    real_BN = (at_BN < length_B[:, None]).astype(np.int32)
    batch = {"inputs": inputs_BN, "segments": real_BN, "positions": at_BN * real_BN}
    return {name: x_BN.astype(np.int32) for name, x_BN in batch.items()}


def write(path: Path, text: str) -> None:
    """Write a file in one piece or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(text.encode("utf-8", "replace"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(found: Findings) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "model": found.model,
        "data": found.data,
        "tokens": found.tokens,
        "documents": found.documents,
        "not_python": found.not_python,
        "shifts": found.shifts,
        "layers": found.layers,
        "experts": found.experts,
        "classes": association_json(found.classes),
        "domains": found.domains and association_json(found.domains),
    }


def association_json(of: Association) -> dict[str, Any]:
    """The figures of one kind of class; lists are by layer, expert and class."""
    return {
        "names": of.names,
        "entropy": of.entropy,
        "bits": of.bits_L.tolist(),
        "bits_shuffled": of.shuffled_L.tolist(),
        "bits_by_chance": of.chance_L.tolist(),
        "bits_by_chance_sd": of.chance_sd_L.tolist(),
        "choices": of.counts_LEY.tolist(),
        "lift": of.lift_LEY.tolist(),
        "z": of.z_LEY.tolist(),
    }


def report(found: Findings, path: Path, seconds: float) -> str:
    """The figures in words."""
    lines = [
        f"model      {found.model}",
        f"text       {found.data}",
        f"           {found.tokens:,} tokens of {found.documents:,} documents, in"
        f" {duration(seconds)}",
    ]
    for what, of in (("class", found.classes), ("domain", found.domains)):
        if of is None:
            continue
        lines.append(f"{what:10} takes {of.entropy:.3f} bits to tell; a choice tells of them")
        for i, layer in enumerate(found.layers):
            lines.append(
                f"  layer {layer:<3} {of.bits_L[i]:.4f}, shuffled {of.shuffled_L[i]:.4f},"
                f" chance {of.chance_L[i]:.4f} ± {of.chance_sd_L[i]:.4f}"
            )
    lines.append("strongest")
    for cell in strongest(found.classes, STRONGEST):
        lines.append(
            f"  layer {found.layers[cell.layer]:<3} expert {found.experts[cell.expert]:3}"
            f" {found.classes.names[cell.label]:10} {cell.lift:.2f}x, z {cell.z:.0f};"
            f" {cell.of_class:.0%} of the class, {cell.of_expert:.0%} of the expert"
        )
    return "\n".join([*lines, f"page       {path}"])


COMMANDS: dict[str, tuple[type[Specialisation], Callable[[Any], None]]] = {
    "specialisation": (Specialisation, specialisation),
}
"""The settings of the command, and what it does with them."""
